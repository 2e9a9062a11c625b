// Files that are dropped anywhere on a page.

/** Who hears of files that are dragged over the page. */
export interface DropListener {
  readonly dragging: (isDragging: boolean) => void;
  readonly dropped: (files: readonly File[]) => void;
}

/** Takes files that are dropped on the page, until the signal aborts. The browser would open them instead. */
export function watchDrops(signal: AbortSignal, { dragging, dropped }: DropListener): void {
  // Elements within each other are entered and left one after the other.
  let depth = 0;
  const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false;
  const listen = (name: 'dragenter' | 'dragover' | 'dragleave' | 'drop', take: (event: DragEvent) => void) => {
    const heard = (event: DragEvent) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      take(event);
    };
    window.addEventListener(name, heard, { signal });
  };
  listen('dragenter', () => {
    depth += 1;
    dragging(true);
  });
  listen('dragover', (event) => {
    if (event.dataTransfer !== null) event.dataTransfer.dropEffect = 'copy';
  });
  listen('dragleave', () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) dragging(false);
  });
  listen('drop', (event) => {
    depth = 0;
    dragging(false);
    dropped([...(event.dataTransfer?.files ?? [])]);
  });
}
