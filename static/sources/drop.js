// Files that are dropped on the page.

/** take(file): the first one that is let go over the page, which says meanwhile that it would take it. */
export function onDrop(take) {
  const { classList } = document.body;
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    classList.remove("dropping");
    if (event.dataTransfer?.files[0]) take(event.dataTransfer.files[0]);
  });
}
