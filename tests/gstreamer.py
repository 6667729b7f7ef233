"""GStreamer's webrtcbin as a WHIP publisher: run by the system's Python, which has its bindings.

    python3 tests/gstreamer.py URL VP8|H264 [none|balanced|max-bundle] [--sound]

publishes a red picture until it is ended, and prints how its connection stands.
"""

from __future__ import annotations

import argparse
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

SOURCE = "videotestsrc is-live=true pattern=red ! video/x-raw,width=128,height=128,framerate=20/1 ! videoconvert"
ENCODERS = {
    "VP8": "vp8enc deadline=1 keyframe-max-dist=20 ! rtpvp8pay pt=96 ! application/x-rtp,encoding-name=VP8",
    "H264": "x264enc tune=zerolatency key-int-max=20 ! video/x-h264,profile=constrained-baseline "
    "! rtph264pay pt=96 config-interval=-1 ! application/x-rtp,encoding-name=H264",
}
SOUND = "audiotestsrc is-live=true freq=1000 ! audio/x-raw,rate=48000,channels=2 ! opusenc ! rtpopuspay pt=97 ! {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("codec", choices=ENCODERS)
    parser.add_argument("bundle", nargs="?", default="none")
    parser.add_argument("--sound", action="store_true")
    options = parser.parse_args()
    Gst.init(None)
    sound = SOUND.format("application/x-rtp,media=audio,payload=97 ! peer.") if options.sound else ""
    pipeline = Gst.parse_launch(
        f"webrtcbin name=peer bundle-policy={options.bundle} "
        f"{SOURCE} ! {ENCODERS[options.codec]},media=video,payload=96 ! peer. {sound}"
    )
    peer = pipeline.get_by_name("peer")
    peer.connect("on-negotiation-needed", lambda _: offer(peer))
    peer.connect("notify::ice-gathering-state", lambda *_: exchange(peer, options.url))
    peer.connect("notify::connection-state", lambda *_: tell(peer))
    pipeline.set_state(Gst.State.PLAYING)
    for index in range(10):
        transceiver = peer.emit("get-transceiver", index)
        if transceiver is None:
            break
        transceiver.set_property("direction", GstWebRTC.WebRTCRTPTransceiverDirection.SENDONLY)
    GLib.MainLoop().run()


def offer(peer: Gst.Element) -> None:
    def made(promise: Gst.Promise) -> None:
        reply = promise.get_reply()  # what it holds goes with it
        peer.emit("set-local-description", reply.get_value("offer"), Gst.Promise.new())

    peer.emit("create-offer", None, Gst.Promise.new_with_change_func(made))


def exchange(peer: Gst.Element, url: str) -> None:
    """With all candidates in the offer, as some senders do."""
    if peer.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        return
    text = peer.get_property("local-description").sdp.as_text()
    print(text, flush=True)
    request = urllib.request.Request(url, text.encode(), {"Content-Type": "application/sdp"})
    with urllib.request.urlopen(request) as response:
        answer = response.read()
    print(answer.decode(), flush=True)
    _, parsed = GstSdp.SDPMessage.new_from_text(answer.decode())
    described = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, parsed)
    peer.emit("set-remote-description", described, Gst.Promise.new())


def tell(peer: Gst.Element) -> None:
    print("connection:", peer.get_property("connection-state").value_nick, flush=True)


if __name__ == "__main__":
    main()
