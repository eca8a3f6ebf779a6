"""Object stores: S3 and Google Cloud Storage, through fsspec."""
