// The behaviours in JavaScript for Node: suite.js BEHAVIOUR [NUMBER]. Each one ends by itself, whatever limit fails.
"use strict";
const fs = require("fs");
const held = [];

function burn(seconds) {
  for (const until = performance.now() + seconds * 1000; performance.now() < until; );
}

function touch(bytes) {
  for (let done = 0; done < bytes; done += 1 << 20) held.push(Buffer.alloc(1 << 20, 1));
}

function writeOut(bytes) {
  const block = Buffer.alloc(65536, "x");
  while (bytes > 0) {
    try {
      bytes -= fs.writeSync(1, block, 0, Math.min(bytes, block.length));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

function litter() {
  try {
    for (let i = 0; i < 20; i++) fs.writeFileSync(`/tmp/leakcheck-litter-${process.pid}-${i}`, "litter");
  } catch {}
}

function fdHog(most) {
  try {
    for (let i = 0; i < most; i++) held.push(fs.openSync("/dev/null", "r"));
  } catch {}
}

const number = Number(process.argv[3] ?? 0);
const behaviours = {
  hello: () => console.log("hello"),
  cpu: () => burn(number / 1000),
  memory: () => touch(number),
  output: () => writeOut(number),
  spin: () => burn(number),
  sleep: () => setTimeout(() => {}, number * 1000),
  ignore_sigterm: () => {
    process.on("SIGTERM", () => {});
    console.log("ready");
    setTimeout(() => {}, number * 1000);
  },
  allocate: () => touch(number),
  exit: () => process.exit(number),
  exception: () => {
    throw new Error("nobody catches it");
  },
  flood: () => writeOut(number),
  temp_litter: litter,
  fd_hog: () => fdHog(number),
};
behaviours[process.argv[2]]();
