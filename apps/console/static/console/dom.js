// The page's elements: found by id, and made.

export const at = (id) => document.getElementById(id);

export const element = (tag, properties) => Object.assign(document.createElement(tag), properties);
