// The argument of Ask: a JSON list of flat objects of text.

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

final class Cases {
    private static final Pattern OBJECT = Pattern.compile("\\{([^}]*)\\}");
    private static final Pattern FIELD = Pattern.compile("\"([^\"]*)\":\"([^\"]*)\"");

    static List<Map<String, String>> read(String json) {
        List<Map<String, String>> cases = new ArrayList<>();
        for (Matcher object = OBJECT.matcher(json); object.find(); ) {
            Map<String, String> fields = new HashMap<>();
            for (Matcher field = FIELD.matcher(object.group(1)); field.find(); ) {
                fields.put(field.group(1), field.group(2));
            }
            cases.add(fields);
        }
        return cases;
    }
}
