// How does a picture begin to play, with sound where the browser lets it? Without a gesture many browsers play muted only.

const GESTURES = ["pointerup", "keydown"]; // a finger that goes down may still scroll: no browser takes that for one

let hushed = null; // the video that plays muted until the first gesture anywhere on the page

for (const gesture of GESTURES) {
  addEventListener(gesture, () => {
    if (hushed) playAloud(hushed); // again: a browser that does not take Escape for a gesture would pause it
  });
}

export function playMuted(video) {
  hushed = null;
  video.muted = true;
  video.play().catch(() => {}); // a newer srcObject interrupts it: that one plays
}

/** With sound at once where that is allowed (OBS), otherwise after a gesture. */
export async function playAloud(video) {
  hushed = null;
  video.muted = false;
  try {
    await video.play();
  } catch (error) {
    if (error.name !== "NotAllowedError") return; // a newer srcObject interrupts it: that one plays
    playMuted(video);
    hushed = video;
  }
}
