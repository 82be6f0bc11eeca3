// Writes dist/hearthlink.js: src/index.js and what it imports as one small file, for pages that load it as it is. Its
// text depends on the sources and on the versions in package-lock.json only; test/bundle.test.js compares.

import { writeFile } from 'node:fs/promises'
import { rolldown } from 'rolldown'

const HEADER = '/* @hearthlink/client, Apache-2.0; src/ made small */\n'
const root = new URL('../', import.meta.url)

export async function bundle() {
  const build = await rolldown({ input: new URL('src/index.js', root).pathname })
  try {
    const { output } = await build.generate({ format: 'esm', minify: true, comments: false })
    return HEADER + output[0].code.replaceAll('/* @__PURE__ */', '')
  } finally {
    await build.close()
  }
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  await writeFile(new URL('dist/hearthlink.js', root), await bundle())
}
