// Begins to play, with sound where the browser's autoplay policy lets it: many play muted only before a gesture.

const GESTURES = ["pointerup", "keydown"]; // a finger that goes down may still scroll: no browser takes that for one

let waiting = null; // a video that plays muted until the first gesture anywhere on the page

for (const gesture of GESTURES) {
  addEventListener(gesture, () => {
    if (waiting) playWithSound(waiting); // again: a browser that does not take Escape for a gesture would pause it
  });
}

export function playMuted(video) {
  waiting = null;
  video.muted = true;
  video.play().catch(() => {}); // a newer srcObject interrupts it: that one plays
}

/** With sound at once where that is allowed (OBS), otherwise after a gesture. */
export async function playWithSound(video) {
  waiting = null;
  video.muted = false;
  try {
    await video.play();
  } catch (error) {
    if (error.name !== "NotAllowedError") return; // a newer srcObject interrupts it: that one plays
    playMuted(video);
    waiting = video;
  }
}
