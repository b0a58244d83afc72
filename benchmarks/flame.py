"""Where the time goes, as a picture: sampled stacks (`a;b;c 12` a line, as py-spy writes them) drawn as a flame graph.

Pure. Widths are samples; a name's place says who called it; pointing at a box tells its share.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Final

WIDTH: Final = 1200
_ROW, _TOP, _NARROWEST = 17, 34, 0.6  # pixels
_WARM: Final = ("#f6b26b", "#f9cb9c", "#ffd966", "#ffe599", "#f4b183", "#f7c6a3")
# Who waits for work spends no time.
IDLE: Final = (
    "WorkerThread._work (trio/_core/_thread_cache.py",
    "EpollIOManager.get_events (trio/",
    "EpollSelector.select (selectors.py",
    "_worker (concurrent/futures/thread.py:81)",
    "Condition.wait (threading.py",
    "Crew._run (cloud/server/threads.py",
    "Watch.wait (apps/tunnels/forwarder_stream.py",
    "DeadlineConnection.wait (",
    "Connection.wait (psycopg/connection.py",
)


@dataclass(slots=True)
class Node:
    """One frame in one place: how many samples were in it, and what it called."""

    samples: int = 0
    calls: dict[str, "Node"] = field(default_factory=dict)

    def depth(self) -> int:
        """The frames above it, itself included."""
        return 1 + max((node.depth() for node in self.calls.values()), default=0)


def parse(lines: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Samples by stack, without those that waited or were misread. Lines of one function are put together."""
    found: dict[tuple[str, ...], int] = {}
    for line in lines:
        text, _, count = line.strip().rpartition(" ")
        if not text or not text.isprintable() or any(idle in text.rpartition(";")[2] for idle in IDLE):
            continue
        stack = tuple(frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in text.split(";"))
        found[stack] = found.get(stack, 0) + int(count)
    return found


def tree(stacks: Mapping[tuple[str, ...], int], *, skip: str = "") -> Node:
    """All stacks in one tree. Frames before the first that begins with `skip` say only how it was started."""
    root = Node()
    for stack, count in stacks.items():
        begin = next((index for index, frame in enumerate(stack) if skip and frame.startswith(skip)), 0)
        root.samples += count
        node = root
        for frame in stack[begin:]:
            node = node.calls.setdefault(frame, Node())
            node.samples += count
    return root


def own(stacks: Mapping[tuple[str, ...], int]) -> list[tuple[str, float]]:
    """The share (0 to 1) of samples in each function itself, the largest first."""
    total = sum(stacks.values())
    shares: dict[str, float] = {}
    for stack, count in stacks.items():
        shares[stack[-1]] = shares.get(stack[-1], 0.0) + count / total
    return sorted(shares.items(), key=lambda share: -share[1])


def _boxes(node: Node, left: float, level: int, scale: float, total: int, height: int) -> str:
    drawn = ""
    for name, child in sorted(node.calls.items()):
        width = child.samples * scale
        if width >= _NARROWEST:
            y = height - (level + 1) * _ROW
            colour = _WARM[sum(name.encode()) % len(_WARM)]
            share = f"{escape(name)}: {100 * child.samples / total:.1f} %"
            drawn += f'<g><title>{share}</title><rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 1}" '
            drawn += f'fill="{colour}"/>'
            if (letters := int(width / 6.4)) >= 4:
                drawn += f'<text x="{left + 3:.1f}" y="{y + 12}">{escape(name[:letters])}</text>'
            drawn += "</g>\n" + _boxes(child, left, level + 1, scale, total, height)
        left += width
    return drawn


def svg(root: Node, title: str) -> str:
    """The picture. Raises ValueError without a sample."""
    if not root.samples:
        raise ValueError("no sample")
    height = _TOP + root.depth() * _ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="monospace" font-size="10.5" role="img">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n'
        f'<text x="10" y="20" font-size="14">{escape(title)} ({root.samples} samples)</text>\n'
        f"{_boxes(root, 0.0, 0, WIDTH / root.samples, root.samples, height)}</svg>\n"
    )
