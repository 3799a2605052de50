"""What the application answers: the page of an author, whatever has fetched its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

AUTHORS, POSTS, COMMENTS = 100, 20, 5  # authors, posts of each, comments on each
SHOWN, NEWEST = 10, 5

TEMPLATE = Environment(autoescape=True).from_string("""\
<article>
  <h1>{{ name }}</h1>
  <p>{{ total }} posts</p>
  {% for post in posts %}
  <section id="post-{{ post.id }}">
    <h2>{{ post.title }}</h2>
    <p>{{ post.body }}</p>
    <small>{{ counts[post.id] }} comments</small>
  </section>
  {% endfor %}
  <ul>
    {% for post in newest %}<li><a href="/posts/{{ post.id }}">{{ post.title }}</a></li>{% endfor %}
  </ul>
</article>
""")


def page(
    name: str,
    posts: Sequence[Any],
    counts: Mapping[int, int],
    newest: Sequence[Any],
    total: int,
) -> dict[str, Any]:
    """The answer; posts have an id, a title and a body, as attributes or as keys."""
    html = TEMPLATE.render(name=name, posts=posts, counts=counts, newest=newest, total=total)
    return {"name": name, "total": total, "comments": sum(counts.values()), "html": html}
