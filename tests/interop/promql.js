// Prints, for each expression of rules and dashboards, the metrics that it selects and the labels that it matches
// them by: a line of JSON each. It exits with 1 where an expression cannot be parsed.
// Usage: promql.js FILE...

'use strict';

const fs = require('node:fs');
const { parser } = require('@prometheus-io/lezer-promql');
const yaml = require('yaml');

// The variables of a dashboard stand for a duration, or inside of quotes for a value.
const plain = (expr) => expr.replaceAll('$__rate_interval', '5m');

function expressions(file) {
  const text = fs.readFileSync(file, 'utf8');
  if (file.endsWith('.json')) {
    return JSON.parse(text).panels.flatMap((panel) => panel.targets.map((target) => target.expr));
  }
  const { groups } = yaml.parse(text);
  return groups.flatMap((group) => group.rules.map((rule) => rule.expr));
}

function selected(expr) {
  const found = [];
  parser.parse(expr).iterate({
    enter(node) {
      if (node.type.isError) throw new Error(`cannot be parsed: ${expr}`);
      if (node.name !== 'VectorSelector') return;
      const name = node.node.getChild('Identifier');
      const matchers = node.node.getChild('LabelMatchers');
      const labels = matchers ? matchers.getChildren('UnquotedLabelMatcher') : [];
      const text = (it) => expr.slice(it.from, it.to);
      found.push({ metric: name ? text(name) : '', labels: labels.map((it) => text(it.getChild('LabelName'))) });
    },
  });
  return found;
}

for (const file of process.argv.slice(2)) {
  for (const expr of expressions(file)) {
    for (const each of selected(plain(expr))) console.log(JSON.stringify(each));
  }
}
console.log('interop ok');
