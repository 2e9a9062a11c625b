// Prints what each expression of rules and dashboards selects, a line of JSON each: a metric with the labels that it is
// matched by (PromQL, "metric"), the labels and the structured metadata of log lines (LogQL, "logs"), or the attributes
// of spans (TraceQL, "spans"). It exits with 1 where an expression cannot be parsed.
// Usage: promql.js FILE...

'use strict';

const fs = require('node:fs');
const parsers = {
  prometheus: require('@prometheus-io/lezer-promql').parser,
  loki: require('@grafana/lezer-logql').parser,
  tempo: require('@grafana/lezer-traceql').parser,
};
const yaml = require('yaml');

// The variables of a dashboard stand for a duration, or inside of quotes for a value.
const plain = (expr) => expr.replaceAll('$__rate_interval', '5m').replaceAll('$__auto', '5m');

function expressions(file) {
  const text = fs.readFileSync(file, 'utf8');
  if (file.endsWith('.json')) {
    const panels = JSON.parse(text).panels.filter((panel) => panel.type !== 'row');
    const targets = panels.flatMap((panel) => panel.targets.map((target) => ({ ...panel.datasource, ...target.datasource, ...target })));
    return targets.map(({ type, expr, query }) => ({ type, expr: type === 'tempo' ? query : expr }));
  }
  const { groups } = yaml.parse(text);
  return groups.flatMap((group) => group.rules.map((rule) => ({ type: 'prometheus', expr: rule.expr })));
}

// Calls `enter` with each node of an expression, and with the text of any node.
function walk(type, expr, enter) {
  const text = (it) => expr.slice(it.from, it.to);
  parsers[type].parse(expr).iterate({
    enter(node) {
      if (node.type.isError) throw new Error(`cannot be parsed: ${expr}`);
      enter(node.node, text);
    },
  });
}

const selected = {
  prometheus(expr) {
    const found = [];
    walk('prometheus', expr, (node, text) => {
      if (node.name !== 'VectorSelector') return;
      const name = node.getChild('Identifier');
      const matchers = node.getChild('LabelMatchers');
      const labels = matchers ? matchers.getChildren('UnquotedLabelMatcher') : [];
      found.push({ metric: name ? text(name) : '', labels: labels.map((it) => text(it.getChild('LabelName'))) });
    });
    return found;
  },
  loki(expr) {
    const logs = [];
    walk('loki', expr, (node, text) => {
      if (node.name === 'Identifier') logs.push(text(node));
    });
    return [{ logs }];
  },
  tempo(expr) {
    // A variable alone is the id of a trace.
    if (/^\$\w+$/.test(expr)) return [{ spans: [] }];
    const spans = [];
    walk('tempo', expr, (node, text) => {
      if (node.name === 'AttributeField') spans.push(text(node));
    });
    return [{ spans }];
  },
};

for (const file of process.argv.slice(2)) {
  for (const { type, expr } of expressions(file)) {
    for (const each of selected[type](plain(expr))) console.log(JSON.stringify(each));
  }
}
console.log('interop ok');
