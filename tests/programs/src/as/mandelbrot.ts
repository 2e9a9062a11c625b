// Draws the Mandelbrot set in text: floating point, strings, the console by preview 1.
for (let y = -12; y <= 12; y++) {
  let line = "";
  for (let x = -39; x <= 19; x++) {
    const cx = <f64>x / 20.0, cy = <f64>y / 10.0;
    let zx = 0.0, zy = 0.0, n = 0;
    while (zx * zx + zy * zy < 4.0 && n < 1000) {
      const next = zx * zx - zy * zy + cx;
      zy = 2.0 * zx * zy + cy;
      zx = next;
      n++;
    }
    line += n == 1000 ? "#" : n > 10 ? "+" : ".";
  }
  console.log(line);
}
