"""The tables that the application reads, and what it asks where it has no ORM."""

from __future__ import annotations

from benchmarks.served.page import AUTHORS, COMMENTS, NEWEST, POSTS, SHOWN

DROP = "DROP TABLE IF EXISTS bench_comment, bench_post, bench_author"
CREATE = f"""
{DROP};
CREATE TABLE bench_author (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE bench_post (
    id int PRIMARY KEY,
    author_id int NOT NULL REFERENCES bench_author,
    title text NOT NULL,
    body text NOT NULL,
    written timestamptz NOT NULL
);
CREATE TABLE bench_comment (
    id int PRIMARY KEY, post_id int NOT NULL REFERENCES bench_post, text text NOT NULL
);
INSERT INTO bench_author SELECT n, 'Author <' || n || '>' FROM generate_series(1, {AUTHORS}) n;
INSERT INTO bench_post
    SELECT n, n % {AUTHORS} + 1, 'Title ' || n, repeat('word & ', 30),
        timestamptz '2024-01-01 00:00Z' + n * interval '1 hour'
    FROM generate_series(1, {AUTHORS * POSTS}) n;
INSERT INTO bench_comment
    SELECT n, n % {AUTHORS * POSTS} + 1, 'comment ' || n
    FROM generate_series(1, {AUTHORS * POSTS * COMMENTS}) n;
CREATE INDEX ON bench_post (author_id, id);
CREATE INDEX ON bench_comment (post_id);
ANALYZE bench_author, bench_post, bench_comment;
"""

AUTHOR_QUERY = "SELECT id, name FROM bench_author WHERE id = $1"
POSTS_QUERY = (
    "SELECT id, author_id, title, body, written FROM bench_post"
    f" WHERE author_id = $1 ORDER BY id DESC LIMIT {SHOWN}"
)
COUNTS_QUERY = (
    "SELECT post_id, count(*) AS n FROM bench_comment WHERE post_id = ANY($1) GROUP BY post_id"
)
NEWEST_QUERY = (
    f"SELECT id, author_id, title, body, written FROM bench_post ORDER BY id DESC LIMIT {NEWEST}"
)
TOTAL_QUERY = "SELECT count(*) FROM bench_post WHERE author_id = $1"
