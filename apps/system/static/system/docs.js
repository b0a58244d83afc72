// Starts Swagger UI: a file of its own, so that the page needs no inline script.
const box = document.getElementById("docs");
SwaggerUIBundle({
  url: box.dataset.schema,
  domNode: box,
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  docExpansion: "list",
});
