"""What is changed of aiortc, where its own tests and ours of the decisions would not notice."""

from __future__ import annotations

import aioice.ice
import pytest
from aiortc import RTCPeerConnection, codecs

from stream.webrtc import aiortc_compat
from stream.webrtc.aiortc_compat import bound_queue


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
