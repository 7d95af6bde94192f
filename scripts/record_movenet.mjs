// What the original MoveNet graphs say of pictures, for tests/test_movenet.py (development only).
//
//   npm install @tensorflow/tfjs
//   python tests/movenet_fixture.py FOLDER
//   node scripts/record_movenet.mjs GRAPHS FOLDER tests/movenet_outputs.json
//
// GRAPHS holds movenet-thunder.json and .bin, and movenet-multipose.json and .bin; FOLDER raw RGB
// pictures <name>.bin and list.json: [{name, model, height, width}, ...].
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';

const tf = createRequire(path.join(process.cwd(), 'package.json'))('@tensorflow/tfjs');
const [graphs, folder, target] = process.argv.slice(2);

function load(model) {
  const file = path.join(graphs, `movenet-${model}`);
  const graph = JSON.parse(fs.readFileSync(`${file}.json`));
  const data = fs.readFileSync(`${file}.bin`);
  const weightSpecs = graph.weightsManifest.flatMap((group) => group.weights);
  const weightData = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  return tf.loadGraphModel({ load: async () => ({ ...graph, weightSpecs, weightData }) });
}

await tf.setBackend('cpu');
const models = { thunder: await load('thunder'), multipose: await load('multipose') };
const lines = [];
for (const { name, model, height, width } of JSON.parse(fs.readFileSync(`${folder}/list.json`))) {
  const pixels = new Int32Array(fs.readFileSync(path.join(folder, `${name}.bin`)));
  const output = models[model].execute(tf.tensor(pixels, [1, height, width, 3], 'int32'));
  const numbers = Array.from(output.dataSync(), (value) => Number(value.toFixed(7)));
  lines.push(`"${name}": ${JSON.stringify(numbers)}`);
}
fs.writeFileSync(target, `{\n${lines.join(',\n')}\n}\n`);
