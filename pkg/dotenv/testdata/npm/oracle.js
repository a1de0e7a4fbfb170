// Answers what npm dotenv makes of a file. A request is one line, the file in
// base64. A reply is one line of JSON: pairs is what the current release
// yields, as [name, value] in order; differ is what other parsers of the package
// yield, by their names, where that is something else.
'use strict'
const dotenv = require('dotenv')
const dotenv16 = require('dotenv-16')

const others = {
  'dotenv 16': dotenv16.parse,
  'dotenv --fast': (src) => dotenv.parse(src, { fast: true })
}

function answer (src) {
  const pairs = Object.entries(dotenv.parse(src))
  const want = JSON.stringify(pairs)
  const differ = {}
  for (const [name, parse] of Object.entries(others)) {
    const got = Object.entries(parse(src))
    if (JSON.stringify(got) !== want) differ[name] = got
  }
  return JSON.stringify({ pairs, differ })
}

require('readline').createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on('line', (line) => process.stdout.write(answer(Buffer.from(line, 'base64')) + '\n'))
