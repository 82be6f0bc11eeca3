import { createClient } from '@hearthlink/client'

// Vite puts these into the page as it is built, so everybody can read them: addresses and names, never a key.
const { VITE_AI_API_BASE_URL, VITE_AI_CLIENT_ID, VITE_AI_ENV } = import.meta.env

export const client = createClient({
  baseUrl: VITE_AI_API_BASE_URL,
  defaults: { clientId: VITE_AI_CLIENT_ID, chatType: 'home' },
  onEvent: VITE_AI_ENV === 'development' ? (event) => console.debug('[hearthlink]', event) : undefined,
})
