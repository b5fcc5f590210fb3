// Refine boxes of a photo in Node.js: node refine.mjs PHOTO X1,Y1,X2,Y2 ...
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import sharp from "sharp";

const [photo, ...boxes] = process.argv.slice(2);
// data is uint8 [height, width, 3], RGB. The model expects float32 [1, 3, height, width] in [0, 1].
const { data, info } = await sharp(photo).removeAlpha().raw().toBuffer({ resolveWithObject: true });
const pixels = info.width * info.height;
const image = new Float32Array(3 * pixels);
data.forEach((value, i) => { image[(i % 3) * pixels + Math.floor(i / 3)] = value / 255; });
const session = await ort.InferenceSession.create(await readFile(new URL("refiner.onnx", import.meta.url)));
const { refined_boxes, ious_before, ious } = await session.run({
  image: new ort.Tensor("float32", image, [1, 3, info.height, info.width]),
  boxes: new ort.Tensor("float32", boxes.join().split(",").map(Number), [boxes.length, 4]),
  labels: new ort.Tensor("int64", boxes.map(() => 0n), [boxes.length]), // 0: unknown class
});
boxes.forEach((box, i) => {
  const refined = [...refined_boxes.data.slice(4 * i, 4 * i + 4)].map((value) => value.toFixed(1));
  console.log(`${box} → ${refined}   predicted IoU ${ious_before.data[i].toFixed(2)} → ${ious.data[i].toFixed(2)}`);
});
