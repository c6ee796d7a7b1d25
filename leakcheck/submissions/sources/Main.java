import java.io.FileInputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** The behaviours in Java: Main BEHAVIOUR [NUMBER]. Each one ends by itself, whatever limit fails. */
public final class Main {
    private static final List<Object> HELD = new ArrayList<>();

    private Main() {}

    private static void rest(double seconds) {
        long until = System.nanoTime() + (long) (seconds * 1e9);
        for (long left = until - System.nanoTime(); left > 0; left = until - System.nanoTime()) {
            try {
                Thread.sleep(Math.max(1, Math.min(1000, left / 1_000_000)));
            } catch (InterruptedException again) {
                continue;
            }
        }
    }

    private static long burn(double seconds) {
        long until = System.nanoTime() + (long) (seconds * 1e9);
        long n = 0;
        while (System.nanoTime() < until) {
            n++;
        }
        return n;
    }

    private static void touch(long bytes) {
        for (long done = 0; done < bytes; done += 1 << 20) {
            byte[] piece = new byte[1 << 20];
            for (int at = 0; at < piece.length; at += 4096) {
                piece[at] = 1;
            }
            HELD.add(piece);
        }
    }

    private static void writeOut(OutputStream out, long bytes) throws IOException {
        byte[] block = new byte[65536];
        java.util.Arrays.fill(block, (byte) 'x');
        for (long done = 0; done < bytes; done += block.length) {
            out.write(block, 0, (int) Math.min(block.length, bytes - done));
        }
        out.flush();
    }

    /** The end of the JVM, which SIGTERM begins, waits for this. */
    private static void ignoreSigterm(long seconds) {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> rest(seconds)));
        System.out.println("ready");
        rest(seconds);
    }

    private static void litter() {
        for (int i = 0; i < 20; i++) {
            try {
                Path path = Path.of("/tmp/leakcheck-litter-" + ProcessHandle.current().pid() + "-" + i);
                Files.writeString(path, "litter");
            } catch (IOException refused) {
                return;
            }
        }
    }

    private static void fdHog(long most) {
        try {
            for (long i = 0; i < most; i++) {
                HELD.add(new FileInputStream("/dev/null"));
            }
        } catch (IOException full) {
            return;
        }
    }

    private static void daemonise() {
        try {
            new ProcessBuilder("/usr/bin/setsid", "/bin/sleep", "30")
                    .redirectInput(new java.io.File("/dev/null"))
                    .redirectOutput(ProcessBuilder.Redirect.DISCARD)
                    .redirectError(ProcessBuilder.Redirect.DISCARD)
                    .start();
        } catch (IOException refused) {
            return;
        }
        rest(0.05);
    }

    private static void sockets() {
        try {
            HELD.add(new ServerSocket(0, 1, InetAddress.getLoopbackAddress()));
        } catch (IOException refused) {
            return;
        }
    }

    private static int recurse(int n) {
        return recurse(n + 1) + n;
    }

    public static void main(String[] arguments) throws IOException {
        long number = arguments.length > 1 ? Long.parseLong(arguments[1]) : 0;
        switch (arguments[0]) {
            case "hello" -> System.out.println("hello");
            case "cpu" -> burn(number / 1e3);
            case "memory", "allocate" -> touch(number);
            case "output", "flood" -> writeOut(new java.io.FileOutputStream(java.io.FileDescriptor.out), number);
            case "spin" -> burn(number);
            case "sleep" -> rest(number);
            case "ignore_sigterm" -> ignoreSigterm(number);
            case "exit" -> System.exit((int) number);
            case "exception" -> throw new IllegalStateException("nobody catches it");
            case "overflow" -> recurse(0);
            case "daemonise" -> daemonise();
            case "temp_litter" -> litter();
            case "fd_hog" -> fdHog(number);
            case "sockets" -> sockets();
            default -> {
                System.err.println("no behaviour " + arguments[0]);
                System.exit(64);
            }
        }
    }
}
