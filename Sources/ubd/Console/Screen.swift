import Glibc

/// The terminal on standard output.
struct Screen: Equatable {
    var columns: Int
    var rows: Int

    /// nil when standard output is no terminal that can move its cursor.
    static var live: Screen? {
        guard isatty(STDOUT_FILENO) == 1, let type = getenv("TERM").map({ String(cString: $0) }),
            !["", "dumb"].contains(type)
        else { return nil }
        var size = winsize()
        // A serial line does not know its size: 80 × 24 is what every terminal has.
        guard ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0, size.ws_row > 0 else {
            return Screen(columns: 80, rows: 24)
        }
        return Screen(columns: Int(size.ws_col), rows: Int(size.ws_row))
    }

    /// The text that replaces what the screen shows, without a last newline, so that nothing scrolls. What does not fit is cut,
    /// and the last line says how much is missing.
    func text(_ lines: [String]) -> String {
        var shown = lines.prefix(rows).map { $0.prefix(columns) }
        if lines.count > rows {
            shown[rows - 1] = "… \(lines.count - rows + 1) more lines".prefix(columns)
        }
        return Screen.whole(shown.map(String.init))
    }

    /// The same for lines that fit.
    static func whole(_ lines: [String]) -> String {
        // ECMA-48: the cursor's home, erase to the end of each line, and of the screen.
        "\u{1B}[H" + lines.map { $0 + "\u{1B}[K" }.joined(separator: "\r\n") + "\u{1B}[J"
    }
}
