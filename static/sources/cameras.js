// The cameras in the list of sources, by name.

/** Fills the list with the cameras by name, where the browser already tells names; keeps what is chosen. */
export async function listCameras(select) {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.().catch(() => [])) ?? [];
  const cameras = devices.filter((device) => device.kind === "videoinput" && device.label);
  if (!cameras.length) return;
  const chosen = select.value;
  for (const option of select.querySelectorAll("[data-camera]")) option.remove();
  const [first, ...others] = cameras;
  const generic = select.querySelector('[value="camera"]'); // "camera" stays a valid choice: it is the first one
  generic.textContent = tidy(first.label);
  generic.dataset.device = first.deviceId;
  const options = others.map((camera) => {
    const option = new Option(tidy(camera.label), `camera:${camera.deviceId}`);
    option.dataset.camera = "";
    option.dataset.device = camera.deviceId;
    return option;
  });
  generic.after(...options);
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
}

const tidy = (label) => label.replace(/\s*\([0-9a-f]{4}:[0-9a-f]{4}\)$/i, ""); // USB ids say nothing to people
