// The time of a line.

/** Shows a time of the day as `15:31:28.123`, in the time zone of the browser; empty where there is none. */
export function formatClock(time: number | undefined): string {
  if (time === undefined) return '';
  const date = new Date(time);
  const two = (value: number) => (value < 10 ? `0${value}` : String(value));
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return `${clock}.${String(date.getMilliseconds()).padStart(3, '0')}`;
}
