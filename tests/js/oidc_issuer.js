// An OpenID Connect issuer (oidc-provider, which is certified) for tests: it gives access tokens to clients that name a
// resource. `node oidc_issuer.js [PORT]` writes `{issuer, kids}` as a line; each line on standard input makes new keys:
// `add` keeps the old ones beside them, `replace` does not.

import { generateKeyPairSync, randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'
import Provider from 'oidc-provider'

const SECRET = 'not-a-secret-'.repeat(4)
// The plan that each client's tokens name; the first one's name none.
const PLANS = { someone: undefined, tester: 'beta', stranger: 'unheard-of', confused: ['beta'] }
const KINDS = [
  ['RS256', 'rsa', { modulusLength: 2048 }],
  ['ES256', 'ec', { namedCurve: 'P-256' }],
  ['EdDSA', 'ed25519', {}],
]

const makeKeys = () =>
  KINDS.map(([alg, kind, options]) => ({
    ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }),
    ...{ kid: randomUUID(), alg, use: 'sig' },
  }))

const makeProvider = (issuer, keys) =>
  new Provider(issuer, {
    clients: Object.keys(PLANS).map((client_id) => ({
      ...{ client_id, client_secret: SECRET, token_endpoint_auth_method: 'client_secret_post' },
      ...{ grant_types: ['client_credentials'], response_types: [], redirect_uris: [] },
    })),
    // The last part of a resource's URI is the algorithm that its tokens are signed with.
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (context, resource) => ({
          ...{ scope: '', audience: resource, accessTokenTTL: 300, accessTokenFormat: 'jwt' },
          jwt: { sign: { alg: new URL(resource).pathname.slice(1) || 'RS256' } },
        }),
      },
    },
    extraTokenClaims: (context, { clientId }) => ({ 'https://example.org/plan': PLANS[clientId] }),
    jwks: { keys },
    ttl: { ClientCredentials: 300 },
  })

let keys = makeKeys()
let provider
const server = createServer((request, response) => provider.callback()(request, response))

server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`
  const begin = () => {
    provider = makeProvider(issuer, keys)
    console.log(JSON.stringify({ issuer, kids: keys.map(({ kid }) => kid) }))
  }
  begin()
  createInterface({ input: process.stdin })
    .on('line', (how) => {
      keys = [...makeKeys(), ...(how === 'add' ? keys : [])]
      begin()
    })
    .on('close', () => process.exit())
})
