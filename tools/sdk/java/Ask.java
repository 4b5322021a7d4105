// Asks for tokens with azure-identity for Java; see ../README.md.

import com.azure.core.credential.TokenRequestContext;
import com.azure.identity.ManagedIdentityCredentialBuilder;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

public class Ask {
    static final Map<String, String> SETTERS = Map.of("client", "clientId", "resource", "resourceId", "object", "objectId");

    /** The builder's method is looked for by name, since old versions lack some. */
    static ManagedIdentityCredentialBuilder named(Map<String, String> test) throws ReflectiveOperationException {
        ManagedIdentityCredentialBuilder builder = new ManagedIdentityCredentialBuilder();
        for (Map.Entry<String, String> setter : SETTERS.entrySet()) {
            String id = test.get(setter.getKey());
            if (id != null) {
                builder.getClass().getMethod(setter.getValue(), String.class).invoke(builder, id);
            }
        }
        return builder;
    }

    static String ask(Map<String, String> test, String version) {
        long started = System.nanoTime();
        String said;
        try {
            TokenRequestContext request = new TokenRequestContext().addScopes("https://vault.azure.net/.default");
            said = "\"token\":" + quoted(named(test).build().getToken(request).block().getToken());
        } catch (NoSuchMethodException missing) {
            said = "\"unsupported\":true";
        } catch (Throwable error) {
            said = "\"error\":" + quoted(error.toString());
        }
        double seconds = (System.nanoTime() - started) / 1e9;
        return "{" + said + ",\"seconds\":" + seconds + ",\"version\":" + quoted(version) + "}";
    }

    static String quoted(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            quoted.append(c < ' ' || c == '"' || c == '\\' ? String.format("\\u%04x", (int) c) : c);
        }
        return quoted.append('"').toString();
    }

    public static void main(String[] arguments) throws Exception {
        Properties of = new Properties();
        try (InputStream file = Ask.class.getResourceAsStream("/META-INF/maven/com.azure/azure-identity/pom.properties")) {
            of.load(file);
        }
        List<Callable<String>> answers = new ArrayList<>();
        for (Map<String, String> test : Cases.read(arguments[0])) {
            answers.add(() -> ask(test, of.getProperty("version")));
        }
        ExecutorService pool = Executors.newFixedThreadPool(answers.size());
        for (Future<String> answer : pool.invokeAll(answers)) {
            System.out.println(answer.get());
        }
        System.exit(0);
    }
}
