// dcmjs-dimse as a service class user: one association, one request, what came of it as JSON.
//
//   node scu.js '{"do": "echo", "host": "127.0.0.1", "port": 104, "calling": "A", "called": "B", ...}'
//
// do: echo; store (files); find (level, keys); get (level, uids, into); move (level, uids, to).
// tls: {ca, certificate, key}; user: {name, password}.
'use strict';

const fs = require('fs');
const path = require('path');
const { Client, Dataset, constants, log, requests, responses } = require('dcmjs-dimse');

// Its words would stand between those of the result.
log.setLevel('silent');

const wanted = JSON.parse(process.argv[2]);
const result = { established: false, released: false, errors: [], responses: [], matches: [], stored: [] };
const client = new Client();

function uids(create) {
  const method = `create${wanted.level}${create}Request`;
  return (type, ...first) => type[method](...first, ...wanted.uids);
}

function made() {
  switch (wanted.do) {
    case 'echo':
      return [new requests.CEchoRequest()];
    case 'store':
      return wanted.files.map((file) => new requests.CStoreRequest(file));
    case 'find':
      return [requests.CFindRequest[`create${wanted.level}FindRequest`](wanted.keys)];
    case 'get':
      return [uids('Get')(requests.CGetRequest)];
    case 'move':
      return [uids('Move')(requests.CMoveRequest, wanted.to)];
    default:
      throw new Error(`nothing is known of ${wanted.do}`);
  }
}

function answered(response) {
  const told = { status: response.getStatus() };
  if (response instanceof responses.CMoveResponse || response instanceof responses.CGetResponse) {
    told.completed = response.getCompleted();
    told.failed = response.getFailures();
  }
  result.responses.push(told);
  if (wanted.do === 'find' && response.getStatus() === constants.Status.Pending) {
    result.matches.push(response.getDataset().getElements());
  }
}

client.on('associationAccepted', () => (result.established = true));
client.on('associationReleased', () => (result.released = true));
client.on('associationRejected', (why) => result.errors.push(`rejected: ${JSON.stringify(why)}`));
client.on('networkError', (error) => result.errors.push(error.message));
client.on('cStoreRequest', (request, callback) => {
  const uid = request.getAffectedSopInstanceUid();
  const response = responses.CStoreResponse.fromRequest(request);
  response.setStatus(constants.Status.Success);
  request.getDataset().toFile(path.join(wanted.into, `${uid}.dcm`), (error) => {
    if (error) {
      result.errors.push(error.message);
      response.setStatus(constants.Status.ProcessingFailure);
    } else {
      result.stored.push(uid);
    }
    callback(response);
  });
});
client.on('closed', () => process.stdout.write(JSON.stringify(result)));

for (const request of made()) {
  request.on('response', answered);
  client.addRequest(request);
}

const options = {};
if (wanted.tls) {
  options.securityOptions = {
    ca: fs.readFileSync(wanted.tls.ca),
    cert: wanted.tls.certificate && fs.readFileSync(wanted.tls.certificate),
    key: wanted.tls.key && fs.readFileSync(wanted.tls.key),
    rejectUnauthorized: true,
  };
}
if (wanted.user) {
  options.userIdentity = {
    type: constants.UserIdentityType.UsernameAndPasscode,
    positiveResponseRequested: true,
    primaryField: wanted.user.name,
    secondaryField: wanted.user.password,
  };
}
client.send(wanted.host, wanted.port, wanted.calling, wanted.called, options);
