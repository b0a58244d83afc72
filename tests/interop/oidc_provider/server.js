// node's oidc-provider, as the tests want it: one client, its own pages to log in, JWTs for machines too.
// node server.js PORT CALLBACK
import Provider from "oidc-provider";

const [port, callback] = process.argv.slice(2);
const people = {
  pat: { email: "pat@example.com", email_verified: true, name: "Pat" },
  una: { email: "una@example.com", email_verified: false, name: "Una" },
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: "visiona",
    client_secret: "a secret with : and / in it",
    redirect_uris: [callback],
    grant_types: ["authorization_code", "client_credentials"],
    response_types: ["code"],
  }],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
  findAccount: async (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, ...people[id] }) }),
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: async () => "urn:visiona",
      getResourceServerInfo: async () => ({ scope: "read", audience: "visiona", accessTokenFormat: "jwt" }),
    },
  },
});
provider.listen(Number(port), "127.0.0.1");
