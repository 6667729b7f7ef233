"""What is changed of aiortc, where its own tests and ours of the decisions would not notice."""

from __future__ import annotations

import ast

import aioice.ice
import pytest
from aiortc import RTCPeerConnection, codecs

from stream.webrtc import aiortc_compat
from stream.webrtc.aiortc_receivers import bound_queue
from tests.paths import ROOT


async def test_a_queue_that_comes_too_late_is_told():
    peer = RTCPeerConnection()
    receiver = peer.addTransceiver("video").receiver
    bound_queue(receiver)
    receiver._RTCRtpReceiver__decoder_thread = object()
    with pytest.raises(RuntimeError):
        bound_queue(receiver)
    receiver._RTCRtpReceiver__decoder_thread = None
    await peer.close()


def test_it_is_applied_once(monkeypatch):
    aiortc_compat.apply()
    mine = [codecs.CODECS["audio"][0]]
    monkeypatch.setitem(codecs.CODECS, "audio", mine)
    monkeypatch.setattr(aioice.ice, "get_host_addresses", None)
    aiortc_compat.apply()
    assert codecs.CODECS["audio"] is mine
    assert aioice.ice.get_host_addresses is None


def test_private_names_are_touched_nowhere_else():
    """Of any library: those of aiohttp stand in aiohttp_compat.py. (A named tuple's _replace is no private name.)"""
    touched = [
        f"{file.relative_to(ROOT)}:{node.lineno} .{node.attr}"
        for file in (ROOT / "stream").rglob("*.py")
        if file.name not in ("aiortc_compat.py", "aiortc_receivers.py", "aiortc_senders.py", "aiohttp_compat.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith(("__", "_replace"))
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert touched == []
