/// Lines of columns for people. The last column is truncated so that a line fits the width.
struct Table {
    var header: [String]
    var rows: [[String]] = []
    /// Longest line, in columns of a terminal.
    var width = 100

    /// The lines, without spaces at their ends.
    var lines: [String] {
        let all = [header] + rows.map { $0.map(\.printable) }
        var widths = [Int](repeating: 0, count: header.count)
        for row in all {
            for (column, cell) in row.enumerated() { widths[column] = max(widths[column], cell.count) }
        }
        let last = header.count - 1
        let room = max(width - widths[..<last].reduce(0) { $0 + $1 + 2 }, 8)
        return all.map { row in
            var line = ""
            for (column, cell) in row.enumerated() {
                guard column == last else {
                    line += cell + String(repeating: " ", count: widths[column] - cell.count + 2)
                    continue
                }
                // The end of a path says more than its beginning.
                line += cell.count <= room ? cell : "…" + cell.suffix(room - 1)
            }
            return String(line.reversed().drop { $0 == " " }.reversed())
        }
    }
}
