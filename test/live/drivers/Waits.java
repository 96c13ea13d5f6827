// JDBC: a query is canceled while it waits for a server. Port and database come from the command line.

import java.io.IOException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

public class Waits {
    public static void main(String[] args) throws SQLException, IOException {
        String url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/" + args[1] + "?user=trusty";
        for (String mode : new String[] {"simple", "extended"}) {
            // With this version it sends no SET of its own, which would wait, too.
            String more = "&assumeMinServerVersion=9.0&prepareThreshold=0&preferQueryMode=" + mode;
            try (Connection connection = DriverManager.getConnection(url + more)) {
                try (Statement statement = connection.createStatement()) {
                    // The driver sends a cancel request when the time is over.
                    statement.setQueryTimeout(1);
                    statement.executeQuery("SELECT 1");
                    System.out.println("no error");
                } catch (SQLException error) {
                    System.out.println(error.getSQLState() + " " + error.getMessage());
                }
                System.out.println("ready");
                System.in.read();
                try (PreparedStatement statement = connection.prepareStatement("SELECT ? + 1")) {
                    statement.setInt(1, 41);
                    ResultSet rows = statement.executeQuery();
                    rows.next();
                    System.out.println(rows.getInt(1));
                }
            }
        }
    }
}
