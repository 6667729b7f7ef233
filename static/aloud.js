// How does a picture begin to play, with sound where the browser lets it? Without a gesture many browsers play muted only.

const GESTURES = ["pointerdown", "keydown"];

export function playMuted(video) {
  video.muted = true;
  video.play().catch(() => {}); // a newer srcObject interrupts it: that one plays
}

/** With sound at once where that is allowed (OBS), otherwise muted until the first gesture anywhere on the page. */
export async function playAloud(video) {
  video.muted = false;
  try {
    await video.play();
  } catch (error) {
    if (error.name !== "NotAllowedError") return; // a newer srcObject interrupts it: that one plays
    playMuted(video);
    const aloud = () => {
      for (const gesture of GESTURES) removeEventListener(gesture, aloud);
      video.muted = false;
    };
    for (const gesture of GESTURES) addEventListener(gesture, aloud);
  }
}
