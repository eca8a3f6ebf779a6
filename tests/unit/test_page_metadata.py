from __future__ import annotations

import pytest

from pipeline.extract.html.metadata import iso_date
from pipeline.extract.html.page import read_page


def test_the_head_of_a_page_says_who_wrote_it_when_and_where_it_lives() -> None:
    page = read_page("""<html xml:lang="de-AT"><head><title>t</title>
        <link rel="canonical" href="https://example.org/page"><link rel="stylesheet" href="s.css">
        <meta name="DC.Creator" content="Ann"><meta name="author" content="Bob  B."><meta name="author" content="Ann">
        <meta property="article:author" content="https://example.org/people/ann">
        <meta property="article:published_time" content="2024-01-02T03:04:05+0100">
        <meta http-equiv="Last-Modified" content="Tue, 02 Jan 2024 10:00:00 GMT">
        <meta name="keywords" content="one, two; three,"><meta property="og:description" content="What it is"></head>
        <body><p>x</p></body></html>""")

    assert page.metadata == {
        "language": "de-AT",
        "url": "https://example.org/page",
        "authors": ["Ann", "Bob B."],
        "created": "2024-01-02T03:04:05+01:00",
        "modified": "2024-01-02T10:00:00+00:00",
        "keywords": ["one", "two", "three"],
        "description": "What it is",
    }


def test_moments_in_the_text_count_where_they_say_that_they_are_the_page_s_and_the_first_counts() -> None:
    page = read_page("""<p>On <time datetime="1999-01-01">a day</time>.</p>
        <time itemprop="datePublished" datetime="2024-05-06">6 May</time>
        <time itemprop="dateModified" datetime="2024-07-08T09:10Z">8 July</time>
        <time pubdate datetime="2001-01-01"></time>
        """)

    assert page.metadata == {"created": "2024-05-06", "modified": "2024-07-08T09:10Z"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("2024-01-02", "2024-01-02"),
        ("2024/1/2", "2024-01-02"),
        ("2024-01", "2024-01"),
        ("1998", "1998"),
        ("2024-01-02 03:04:05 UTC", "2024-01-02T03:04:05Z"),
        ("$Date: 2011/05/06 07:08:09 $", "2011-05-06T07:08:09"),
        ("Tue, 2 Jan 2024 10:00:00 +0200", "2024-01-02T10:00:00+02:00"),
        ("2024-13-01", ""),
        ("yesterday", ""),
        ("", ""),
    ],
)
def test_a_date_is_written_as_iso_8601_or_left_out(said: str, expected: str) -> None:
    assert iso_date(said) == expected
