// The packages that the build bundles, and which of them it executes. This file stands for none: the build writes it.

export const packages = {};
export const imports = [];
