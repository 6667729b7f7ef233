// Counts the pictures a video shows, whatever the browser counts itself: Firefox counts none of a MediaStream.

/** -> () => a number that changes while `video` shows new pictures; counts until `signal` aborts. */
export function countFrames(video, signal) {
  if (!video.requestVideoFrameCallback) return () => video.currentTime;
  let shown = 0;
  const count = () => {
    shown++;
    if (!signal.aborted) video.requestVideoFrameCallback(count);
  };
  video.requestVideoFrameCallback(count);
  // Nothing is shown on a page that is hidden: there the video's clock has to do.
  return () => (document.hidden ? shown + video.currentTime : shown);
}
