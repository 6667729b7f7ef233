"""WebRTC on aiortc: WHIP sessions bring frames and sound in, WHEP sessions take pictures and sound out."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)

from stream.clocks import MediaClock
from stream.descriptors import OutOfDescriptors, none_left
from stream.engine.runner import EngineFailed
from stream.network import SAMPLE_S
from stream.publications import Publication
from stream.streams import Stream

from . import aiortc_compat, aiortc_receivers, aiortc_senders
from .decoding import SoundBuffer
from .feedback import SenderFeedback
from .negotiation import sdp
from .negotiation.offers import Offer
from .receiving.intake import VideoIntake
from .receiving.layers import Layers, retransmissions
from .receiving.nack import RoundTrip
from .sound import CLOCK_HZ as SOUND_HZ
from .sound import SoundTrack, drain_sound
from .tracks import CLOCK_HZ as VIDEO_HZ
from .tracks import PictureTrack, drain, drain_video

log = logging.getLogger(__name__)

MAX_ENDED = 64
CONNECT_S = 20.0  # a session whose peer has not connected by then is closed

HANDSHAKE_REMEDIES = {
    "fingerprint mismatch": "its certificate is not the one that its offer's a=fingerprint names",
    "no SRTP profile negotiated": "it offers none of our SRTP profiles (AES-GCM, AES128_CM_SHA1_80)",
    "no shared cipher": "no shared cipher, so give the peer an ECDSA or RSA certificate and DTLS 1.2",
}


def oversize(width: int, height: int) -> str:
    return f"The publisher's video has {width}x{height} pixels: more than 4096x2304 are not decoded, send it smaller."


class TooManySessions(RuntimeError):
    """The limit of simultaneous sessions is reached."""


class Session:
    """One WHIP or WHEP resource and its peer connection. `kind` is "whip" or "whep"."""

    def __init__(self, kind: str, stream: Stream):
        self.kind, self.stream = kind, stream
        self.id = secrets.token_urlsafe(18)
        self.etag = f'"{secrets.token_hex(8)}"'
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.publication: Publication | None = None
        self.offer_ufrag: str | None = None
        self.candidates = 0
        self.tracks: list[MediaStreamTrack] = []
        self.tasks: set[asyncio.Task] = set()
        self.closed = False

    def spawn(self, work: Coroutine) -> asyncio.Task:
        """Run beside the session; cancelled with it. What it raises is written to the log."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A session of stream %s failed in part.", self.stream.name, exc_info=error)


class Sessions:
    """Opens, finds and closes the sessions of a server; all on the event loop.

    picture_size: (width, height) of what viewers are sent, as far as that is known when their offers are answered.
    """

    def __init__(self, max_sessions: int, picture_size: Callable[[], tuple[int, int]]):
        aiortc_compat.apply()
        self._picture_size = picture_size
        self._max_sessions = max_sessions
        self._sessions: dict[str, Session] = {}
        # (kind, stream, id) of those that ended by themselves: their DELETE may still be on its way.
        self._ended: deque[tuple[str, str, str]] = deque(maxlen=MAX_ENDED)
        self.ended = 0  # how many there were
        self._opening = 0
        self._closing: set[asyncio.Task] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, kind: str, name: str, session_id: str) -> Session | None:
        session = self._sessions.get(session_id)
        return session if session and (session.kind, session.stream.name) == (kind, name) else None

    async def delete(self, kind: str, name: str, session_id: str) -> bool:
        """End a session for good; False when there is none. One that ended by itself can be deleted once: clients
        that close their peer first would be told that something is wrong."""
        session = self.find(kind, name, session_id)
        if session is not None:
            await self.close(session)
        if (kind, name, session_id) not in self._ended:
            return False
        self._ended.remove((kind, name, session_id))
        return True

    async def publish(self, stream: Stream, offer: Offer) -> tuple[Session, str]:
        """Answer a WHIP offer. Whoever published this stream before is closed: the newest publisher wins.

        Returns the session and the SDP answer. Raises BadSdp, TooManySessions, EngineFailed.
        """
        stream.check_served()
        takes_over = stream.publication is not None
        session = Session("whip", stream)
        session.peer.on("track", session.tracks.append)
        answer = await self._answer(session, offer, spare=takes_over)
        if not any(track.kind == "video" for track in session.tracks):  # nothing would ever end such a publication
            self.close_soon(session)
            raise sdp.BadSdp("The SDP offer's video sends nothing.")
        session.publication, replaced = stream.publish(session)
        session.publication.close_publisher = lambda: self.close_soon(session)
        self._drain(session, session.publication, retransmissions(offer.text))
        session.spawn(self._count_received(session, session.publication))
        if replaced is not None:
            replaced.close_publisher()
        try:
            stream.check_served()  # the engine may have failed meanwhile
        except EngineFailed:
            self.close_soon(session)
            raise
        return session, answer

    async def view(self, stream: Stream, offer: Offer) -> tuple[Session, str]:
        """Answer a WHEP offer; the picture starts when there is one. Raises as `publish` does."""
        session = Session("whep", stream)
        self._send_pictures(session, PictureTrack(stream))
        if offer.sound:
            self._send(session, SoundTrack(stream))
        return session, await self._answer(session, offer)

    def add_candidates(self, session: Session, candidates: sdp.Candidates) -> None:
        """Trickle ICE, taken up in the background. Raises BadSdp."""
        session.candidates += len(candidates)
        if session.candidates > sdp.MAX_CANDIDATES:
            raise sdp.BadSdp(f"More than {sdp.MAX_CANDIDATES} candidates are not taken.")
        for mid, candidate in candidates:
            session.spawn(self._add_candidate(session, mid, candidate))

    def _send_pictures(self, session: Session, track: PictureTrack) -> None:
        feedback = SenderFeedback(lambda: track.deserves_bps)
        sender = self._send(session, track, feedback.reports.sent)
        aiortc_senders.follow_feedback(sender, feedback, track.repeat)
        session.spawn(self._count_sent(session, feedback))

    def _send(
        self,
        session: Session,
        track: PictureTrack | SoundTrack,
        reported: Callable[[float, int], None] = lambda *report: None,
    ) -> RTCRtpSender:
        session.tracks.append(track)
        sender = session.peer.addTransceiver(track, direction="sendonly").sender
        aiortc_senders.tell_moments(sender, lambda: track.moment_s, reported)
        return sender

    async def _count_sent(self, session: Session, feedback: SenderFeedback) -> None:
        """Have the stream tell of this viewer's network."""
        network = session.stream.network
        try:
            while True:
                await asyncio.sleep(SAMPLE_S)
                if feedback.is_heard:
                    network.sent(session.id, time.monotonic(), feedback.statistics())
        finally:
            network.left(session.id)

    async def _count_received(self, session: Session, publication: Publication) -> None:
        """Have the stream tell of its publisher's network."""
        while session.stream.publication is publication:
            if publication.network is not None:
                session.stream.network.received(time.monotonic(), publication.network())
            await asyncio.sleep(SAMPLE_S)

    def _drain(self, session: Session, publication: Publication, sent_again: Mapping[int, int]) -> None:
        """Take in the first video and the first sound of a publisher; what else it sends is thrown away."""
        picture, sound = (next((t for t in session.tracks if t.kind == kind), None) for kind in ("video", "audio"))
        round_trip = RoundTrip()
        for transport in {receiver.transport for receiver in session.peer.getReceivers()}:
            aiortc_compat.take_media_for_consent(transport, round_trip.add)
        for receiver in session.peer.getReceivers():
            track = receiver.track
            if track is None:  # the offer has a section of this kind that sends nothing
                continue
            encoded = aiortc_receivers.bound_queue(receiver)
            if track is picture:
                encoded.on_skip = publication.skip
                encoded.on_oversize = lambda width, height: publication.refuse(oversize(width, height))
                intake = VideoIntake(Layers(session.stream.painted_size), round_trip)
                aiortc_receivers.take_video(receiver, sent_again, intake)
                encoded.ask_for_keyframe = intake.want_keyframe
                publication.network = intake.statistics
                reports = aiortc_receivers.sender_reports(receiver, VIDEO_HZ, intake.ssrc)
                publication.clock.wall_origin_s = reports.wall_origin_s
                work = drain_video(track, publication, encoded.arrived_s, CONNECT_S, intake.last_heard_s)
                self._until_done(session, work)
            elif track is sound:
                aiortc_receivers.set_packet_buffer(receiver, SoundBuffer())
                reports = aiortc_receivers.sender_reports(receiver, SOUND_HZ)
                clock = MediaClock(reports.wall_origin_s, leader=publication.clock)
                session.spawn(drain_sound(track, publication, clock, encoded.arrived_s))
            else:
                session.spawn(drain(track))

    async def close(self, session: Session) -> None:
        """End a session; harmless when it has ended."""
        if session.closed:
            return
        session.closed = True
        self.ended += 1
        if self._sessions.pop(session.id, None) is not None:
            self._ended.append((session.kind, session.stream.name, session.id))
        if session.publication is not None:
            session.publication.end()
        for track in session.tracks:
            track.stop()
        for task in list(session.tasks):
            task.cancel()
        try:
            await session.peer.close()
        except Exception:
            # A peer that aiortc could set up only halfway cannot be taken down in order either; it has no sockets.
            log.warning("A session of stream %s did not close in order.", session.stream.name, exc_info=True)
        log.info("%s session of stream %s ended.", session.kind.upper(), session.stream.name)

    def close_soon(self, session: Session) -> None:
        task = asyncio.create_task(self.close(session))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(session) for session in list(self._sessions.values())))
        await asyncio.gather(*self._closing)

    async def _answer(self, session: Session, offer: Offer, spare: bool = False) -> str:
        """Negotiate and register the session; `spare` lets one through that is about to replace another."""
        if len(self._sessions) + self._opening >= self._max_sessions + spare:
            self.close_soon(session)
            raise TooManySessions(f"All {self._max_sessions} sessions are in use; try again in a few seconds.")
        self._opening += 1
        try:
            session.offer_ufrag = offer.ufrag
            aiortc_compat.tell_failure(session.peer, lambda error: self._give_up(session, error))
            answer = offer.answered(await self._negotiate(session, offer))
            if session.closed:
                raise sdp.BadSdp("The SDP offer leads to no connection: one of its attributes is malformed.")
            self.add_candidates(session, offer.candidates)
        except BaseException:
            self.close_soon(session)
            raise
        finally:
            self._opening -= 1
        self._sessions[session.id] = session
        session.peer.on("connectionstatechange", lambda: self._follow(session))
        session.spawn(self._expect_connection(session))
        log.info("%s session of stream %s opened.", session.kind.upper(), session.stream.name)
        return answer

    async def _negotiate(self, session: Session, offer: Offer) -> str:
        peer = session.peer
        sent_size = self._picture_size() if session.kind == "whep" else None
        try:
            await peer.setRemoteDescription(RTCSessionDescription(sdp=offer.text, type="offer"))
            aiortc_compat.agree_on(peer, {key: one.answered(sent_size) for key, one in offer.h264.items()})
            for transport in {sender.transport for sender in peer.getSenders()}:
                aiortc_compat.tell_handshake_failure(transport, lambda reason: self._tell_handshake(session, reason))
            await peer.setLocalDescription(await peer.createAnswer())
        except Exception as error:
            if none_left(error):
                raise OutOfDescriptors from error
            # aiortc's parser answers malformed text with whatever it stumbles over: asserts, KeyErrors, StopIteration.
            log.debug("aiortc cannot read an offer.", exc_info=True)
            raise sdp.BadSdp("The SDP offer cannot be read: one of its attributes is malformed.") from error
        if "\na=candidate:" not in peer.localDescription.sdp:  # aioice goes on without what it could not open
            raise OutOfDescriptors
        return peer.localDescription.sdp

    def _tell_handshake(self, session: Session, reason: str) -> None:
        if not session.closed:
            log.warning(
                "The DTLS handshake of a %s session of stream %s failed: %s.",
                session.kind.upper(),
                session.stream.name,
                HANDSHAKE_REMEDIES.get(reason, reason),
            )

    async def _add_candidate(self, session: Session, mid: str, candidate: RTCIceCandidate) -> None:
        candidate.sdpMid = mid or session.peer.getTransceivers()[0].mid
        try:
            await session.peer.addIceCandidate(candidate)
        except (ValueError, OSError) as error:  # OSError: no mDNS here
            log.info("A candidate of stream %s is of no use: %s", session.stream.name, error)

    def _give_up(self, session: Session, error: Exception) -> None:
        if not session.closed:
            log.warning("A session of stream %s cannot be connected: %r", session.stream.name, error)
            self.close_soon(session)

    def _follow(self, session: Session) -> None:
        if session.peer.connectionState in ("failed", "closed"):
            self.close_soon(session)

    async def _expect_connection(self, session: Session) -> None:
        await asyncio.sleep(CONNECT_S)
        if session.peer.connectionState != "connected":
            if session.peer.iceConnectionState == "completed":
                self._tell_handshake(session, f"the peer did not finish it within {CONNECT_S:g} s")
            log.info("The peer of a session of stream %s never connected.", session.stream.name)
            self.close_soon(session)

    def _until_done(self, session: Session, work: Coroutine) -> None:
        """The session ends when this work does."""
        session.spawn(work).add_done_callback(lambda task: self.close_soon(session))
