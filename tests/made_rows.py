"""Rows of conversations, files that hold them, and what was read."""

import json

from skipalign.conversation import Conversation, Rejection, read_conversations


def pair(n):
    return {"prompt": f"question {n}", "completion": f"answer {n}"}


def chat(*roles):
    return {"messages": [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]}


def read(path, **options):
    return list(read_conversations(str(path), name="test", **options))


def wrote(folder, name, data):
    path = folder / name
    path.unlink(missing_ok=True)  # some file systems flush a file that is written over
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(*rows):
    return b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows) + b"\n"


def outline(items):
    """What was read, short: (line, answer or reason)."""
    return [
        (i.place.line, i.reason if isinstance(i, Rejection) else i.messages[-1].content)
        for i in items
    ]


def roles_and_texts(item):
    assert isinstance(item, Conversation), item
    return [(message.role, message.content) for message in item.messages]


def messages(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def sharegpt(*turns, **columns):
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **columns}
