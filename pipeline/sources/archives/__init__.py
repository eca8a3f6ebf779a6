"""Archives, member by member: zip, tar and what compresses them."""
