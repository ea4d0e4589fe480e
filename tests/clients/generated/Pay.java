import java.net.URI;
import java.net.http.HttpClient;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.PrivateKey;
import java.security.Signature;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.time.Instant;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.UUID;
import java.util.stream.Collectors;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.DefaultApi;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.SendRequest;
import org.openapitools.client.model.Status;

/** Pays with the client that OpenAPI Generator makes, follows the payment, and reads two refusals. */
public final class Pay {
    private static final String PATH = "/v1/transactions/send";

    /** Arguments: the edge's URL, its CA, the token's file, the device key's file. */
    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        String token = Files.readString(Path.of(arguments[2])).strip();
        PrivateKey key = privateKey(Path.of(arguments[3]));
        ApiClient client = client(url, Path.of(arguments[1]));
        DefaultApi api = new DefaultApi(client);
        Map<String, String> authorization = Map.of("Authorization", "Bearer " + token);

        SendRequest payment = new SendRequest()
                .fromVPA("alice@torana")
                .toVPA("bob@torana")
                .amount(new java.math.BigDecimal("1.25"))
                .txnNote("Lunch")
                .deviceId("device-alice-1")
                .idempotencyKey(UUID.randomUUID().toString());
        byte[] body = client.getObjectMapper().writeValueAsBytes(payment);
        String digest = "sha-256=:" + base64(MessageDigest.getInstance("SHA-256").digest(body)) + ":";
        Map<String, String> covered = new LinkedHashMap<>();
        covered.put("@method", "POST");
        covered.put("@path", PATH);
        covered.put("@query", "?");
        covered.put("content-digest", digest);
        covered.put("authorization", authorization.get("Authorization"));
        covered.put("idempotency-key", payment.getIdempotencyKey());
        String parameters = "(" + covered.keySet().stream().map(name -> '"' + name + '"').collect(Collectors.joining(" "))
                + ");created=" + Instant.now().getEpochSecond() + ";nonce=\"" + UUID.randomUUID()
                + "\";keyid=\"device-alice-1\";alg=\"ecdsa-p256-sha256\"";
        String signature = "sig1=:" + base64(sign(key, covered, parameters)) + ":";

        String id = api.send(payment.getIdempotencyKey(), digest, "sig1=" + parameters, signature, payment, authorization)
                .getTxnId();
        Instant until = Instant.now().plusSeconds(60);
        while (api.find(id, authorization).getStatus() != Status.COMPLETED) {
            if (Instant.now().isAfter(until)) {
                throw new IllegalStateException("the payment did not complete");
            }
            Thread.sleep(50);
        }

        refused(client, () -> api.find(id, Map.of("Authorization", "Bearer nonsense")), 401, "token_malformed");
        String unknown = "TOR" + "0".repeat(32);
        refused(client, () -> api.find(unknown, authorization), 404, "transaction_not_found");
        System.out.println("COMPLETED");
    }

    private interface Call {
        void run() throws ApiException;
    }

    private static void refused(ApiClient client, Call call, int status, String code) throws Exception {
        try {
            call.run();
        } catch (ApiException refusal) {
            Problem problem = client.getObjectMapper().readValue(refusal.getResponseBody(), Problem.class);
            if (refusal.getCode() == status && code.equals(problem.getCode())) {
                return;
            }
            throw refusal;
        }
        throw new IllegalStateException("not refused: " + code);
    }

    /** RFC 9421 section 2.5. */
    private static byte[] sign(PrivateKey key, Map<String, String> covered, String parameters) throws Exception {
        StringBuilder base = new StringBuilder();
        covered.forEach((name, value) -> base.append('"').append(name).append("\": ").append(value).append('\n'));
        base.append("\"@signature-params\": ").append(parameters);
        Signature signature = Signature.getInstance("SHA256withECDSAinP1363Format");
        signature.initSign(key);
        signature.update(base.toString().getBytes(StandardCharsets.ISO_8859_1));
        return signature.sign();
    }

    private static PrivateKey privateKey(Path pem) throws Exception {
        String text = Files.readString(pem).replaceAll("-----[A-Z ]+-----|\\s", "");
        return KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(text)));
    }

    private static ApiClient client(String url, Path ca) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (var in = Files.newInputStream(ca)) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext tls = SSLContext.getInstance("TLS");
        tls.init(null, trust.getTrustManagers(), null);
        ApiClient client = new ApiClient();
        client.updateBaseUri(URI.create(url).toString());
        client.setHttpClientBuilder(HttpClient.newBuilder().sslContext(tls));
        return client;
    }

    private static String base64(byte[] bytes) {
        return Base64.getEncoder().encodeToString(bytes);
    }
}
