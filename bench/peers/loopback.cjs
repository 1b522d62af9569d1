// node --require: a server that would listen on every interface listens on 127.0.0.1 only.
// Portkey takes a port but no address, and a benchmark has no business being reachable from outside.
'use strict'
const { Server } = require('node:net')

const listen = Server.prototype.listen
Server.prototype.listen = function (first, ...rest) {
  if (typeof first === 'number') {
    const options = rest.filter((argument) => typeof argument === 'function')
    return listen.call(this, { port: first, host: '127.0.0.1' }, ...options)
  }
  const isAddress = first !== null && typeof first === 'object' && first.port !== undefined
  return listen.call(this, isAddress ? { ...first, host: '127.0.0.1' } : first, ...rest)
}
