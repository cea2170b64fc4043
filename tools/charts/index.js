// Vega without what the report doesn't draw (maps, word clouds, statistics), the interpreter that lets its
// expressions run under a content security policy, and dagre.
import { transforms } from 'vega-dataflow';
import * as plain from 'vega-transforms';
import * as view from 'vega-view-transforms';
import * as encode from 'vega-encode';
import * as trees from 'vega-hierarchy';

Object.assign(transforms, plain, view, encode, trees);

export { View } from 'vega-view';
export { parse } from 'vega-parser';
export { expressionInterpreter } from 'vega-interpreter';
export { graphlib, layout } from '@dagrejs/dagre';
