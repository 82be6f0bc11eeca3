// Seconds.
export const LIFE = 600

// A door that numbers its tokens.
export function door({ life = LIFE, takes = async () => {} } = {}) {
  const load = async () => {
    const token = `hlt_${++load.calls}`
    await takes()
    return { token, expires_in: life }
  }
  load.calls = 0
  return load
}
