// The stored modules as they are listed: which, and in what order.

import { timestampMs } from '@bufbuild/protobuf/wkt';

import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';

/** A column that the list can be sorted by. */
export type ModuleOrder = 'name' | 'size' | 'memory' | 'used';

/** Returns what a module is called: its given name, or that of its name section; empty where it has neither. */
export function moduleName(module: Pick<ModuleInfo, 'name' | 'nameSection'>): string {
  return module.name === '' ? module.nameSection : module.name;
}

/** Returns when a module last ran or was loaded, in milliseconds of `Date.now()`; 0 where that is not known. */
export function lastUsed(module: Pick<ModuleInfo, 'lastUsed'>): number {
  return module.lastUsed === undefined ? 0 : timestampMs(module.lastUsed);
}

/** Returns the modules that have every word of a text in a name, in their digest, or in a label as `key=value`. */
export function filterModules(modules: readonly ModuleInfo[], text: string): ModuleInfo[] {
  const words = text
    .toLowerCase()
    .split(/\s+/)
    .filter((it) => it !== '');
  return modules.filter((module) => {
    const labels = Object.entries(module.labels).map(([key, value]) => `${key}=${value}`);
    const texts = [module.name, module.nameSection, module.digest, ...labels].map((it) => it.toLowerCase());
    return words.every((word) => texts.some((it) => it.includes(word)));
  });
}

/** Sorts modules. What is equal stays in the order of digests; names ascend at first, and figures descend. */
export function sortModules(modules: readonly ModuleInfo[], order: ModuleOrder, isReversed: boolean): ModuleInfo[] {
  const compare = (a: ModuleInfo, b: ModuleInfo) => {
    switch (order) {
      case 'name':
        return compareNames(moduleName(a), moduleName(b));
      case 'size':
        return Number(b.size - a.size);
      case 'memory':
        return Number(b.memoryMinimumPages - a.memoryMinimumPages);
      case 'used':
        return lastUsed(b) - lastUsed(a);
    }
  };
  const by = (a: ModuleInfo, b: ModuleInfo) => (a.digest < b.digest ? -1 : 1);
  return [...modules].sort((a, b) => (isReversed ? -compare(a, b) : compare(a, b)) || by(a, b));
}

/** Compares names; those that are empty come last. */
function compareNames(a: string, b: string): number {
  if (a === '' || b === '') return Number(a === '') - Number(b === '');
  return a.localeCompare(b, 'en', { sensitivity: 'base', numeric: true });
}
