// What a browser adds to the requests of a page by itself. PAGE_ORIGIN is the page's origin.

const { fetch } = globalThis

globalThis.fetch = (input, init = {}) => {
  const headers = new Headers(init.headers)
  headers.set('Origin', process.env.PAGE_ORIGIN)
  return fetch(input, { ...init, headers })
}
