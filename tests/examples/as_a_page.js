// What a browser adds to the requests of a page by itself. PAGE_ORIGIN is the page's origin.

const { fetch } = globalThis

// What the page's own login made, in an example that has one; an API key does where no issuer is.
globalThis.auth0 = { getTokenSilently: async () => process.env.BEARER ?? process.env.KEY }

globalThis.fetch = (input, init = {}) => {
  const headers = new Headers(init.headers)
  headers.set('Origin', process.env.PAGE_ORIGIN)
  return fetch(input, { ...init, headers })
}
