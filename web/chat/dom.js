// Markup and texts stand in index.html; no text becomes HTML here.

export const $ = (id) => document.getElementById(id)

// A template's elements, new.
export const copyOf = (id) => [...$(id).content.cloneNode(true).children]

// For screen readers, once.
export const announce = (text) => ($('announcer').textContent = text)

// Did it work? Without https there is no navigator.clipboard.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    return copyEvent(text)
  }
}

function copyEvent(text) {
  document.oncopy = (event) => {
    event.clipboardData.setData('text', text)
    document.oncopy = null
    return false
  }
  return document.execCommand('copy')
}

// A button that copies `text()`, and says so for a moment; its name stays what it does.
export function copies(button, text) {
  const label = button.textContent
  button.ariaLabel ??= label
  button.onclick = async () => {
    button.textContent = (await copy(text())) ? 'Copied' : 'Not allowed'
    announce(button.textContent)
    setTimeout(() => (button.textContent = label), 1500)
  }
}
