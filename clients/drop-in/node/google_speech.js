// Google's own client for Node.js, unchanged, against this server: `node google_speech.js file|stream RECORDING`.
//
// TYPELESS_SERVER is HOST:PORT (default localhost:50051), TYPELESS_API_KEY a key, if the server has keys. With TLS, leave
// sslCreds out, and give the key as apiKey. With GOOGLE_CLOUD_UNIVERSE_DOMAIN the client has only that option, and
// `typeless keys google-account` makes its credentials.
import {readFileSync} from 'node:fs';
import {setTimeout} from 'node:timers/promises';
import speech from '@google-cloud/speech';
import {credentials} from '@grpc/grpc-js';
import {PassThroughClient} from 'google-auth-library';

const [host, port] = (process.env.TYPELESS_SERVER ?? 'localhost:50051').split(':');
const key = process.env.TYPELESS_API_KEY;
const otherArgs = {headers: key ? {'x-goog-api-key': key} : {}};
const universeDomain = process.env.GOOGLE_CLOUD_UNIVERSE_DOMAIN; // which the client reads only in part
const client = new speech.SpeechClient(universeDomain ? {universeDomain} : {
  apiEndpoint: host,
  port: Number(port),
  sslCreds: credentials.createInsecure(),
  authClient: new PassThroughClient(), // so that it does not look for Google's credentials
});

const [command, path] = process.argv.slice(2);
const content = readFileSync(path);
if (command === 'file') {
  const request = {config: {languageCode: 'en-US'}, audio: {content}};
  const [response] = await client.recognize(request, {otherArgs});
  console.log(response.results.map(result => result.alternatives[0].transcript).join(''));
} else {
  const config = {encoding: 'LINEAR16', sampleRateHertz: 16000, languageCode: 'en-US'};
  const stream = client.streamingRecognize({config, interimResults: true}, {otherArgs});
  const ended = new Promise((resolve, reject) => stream.on('end', resolve).on('error', reject));
  stream.on('data', ({results}) => {
    for (const {isFinal, alternatives} of results) {
      console.log(isFinal ? 'final:' : 'interim:', alternatives[0].transcript.trim());
    }
  });
  for (let at = 0; at < content.length; at += 1600) {
    stream.write(content.subarray(at, at + 1600));
    await setTimeout(50);
  }
  stream.end();
  await ended;
}
