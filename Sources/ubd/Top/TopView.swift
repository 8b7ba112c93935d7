import BrokerInterface

/// What `ubd top` shows, and what its keys change of that. It knows neither terminal nor broker.
struct TopView {
    var sort: TopColumn
    var isReversed = false
    /// Milliseconds between two samples.
    var interval: UInt64
    var isPaused = false
    private(set) var showsHelp = false
    /// The devices whose queues are shown.
    private(set) var opened: Set<UInt32> = []
    /// The device of the line with the mark.
    private(set) var selected: UInt32?
    /// The latest.
    private(set) var sample: TopSample?
    /// Why there is no newer one.
    var trouble: String?
    /// The first line shown of the table.
    private var first = 0
    /// Lines of the table on the last frame.
    private var page = 1

    enum Reaction: Equatable {
        case nothing
        /// Something that was not asked for before is wanted, or the time between samples has changed.
        case sampleNow
        /// What is on the screen is not what was drawn.
        case drawAnew
        case suspend, quit
    }

    static let intervals: ClosedRange<UInt64> = 100...86_400_000
    /// The last line: it fits 80 columns.
    private static let keys = "q quit  h help  left/right sort  r reverse  up/down  enter queues  +/- time"

    init(sort: TopColumn, interval: UInt64) {
        self.sort = sort
        self.interval = interval
    }

    mutating func take(_ sample: TopSample) {
        self.sample = sample
        trouble = nil
        let ids = sample.rows.filter { $0.queue == nil }.map(\.id)
        opened.formIntersection(ids)
        if let selected, !ids.contains(selected) { self.selected = nil }
    }

    // MARK: Keys

    mutating func press(_ key: TopKey) -> Reaction {
        if showsHelp {
            showsHelp = false
            return key == .quit ? .quit : key == .suspend ? .suspend : .nothing
        }
        switch key {
        case .quit: return .quit
        case .suspend: return .suspend
        case .redraw: return .drawAnew
        case .up: move(-1)
        case .down: move(1)
        case .pageUp: move(-page)
        case .pageDown: move(page)
        case .home: move(-devices.count)
        case .end: move(devices.count)
        case .left: turn(-1)
        case .right: turn(1)
        case .enter: return open()
        case .escape: selected = nil
        case .character(let byte): return press(byte)
        }
        return .nothing
    }

    private mutating func press(_ byte: UInt8) -> Reaction {
        switch byte {
        case UInt8(ascii: "q"), UInt8(ascii: "Q"): return .quit
        case UInt8(ascii: "h"), UInt8(ascii: "?"): showsHelp = true
        case UInt8(ascii: "r"): isReversed.toggle()
        case UInt8(ascii: "p"): isPaused.toggle()
        case UInt8(ascii: "k"): move(-1)
        case UInt8(ascii: "j"): move(1)
        case UInt8(ascii: "<"): turn(-1)
        case UInt8(ascii: ">"): turn(1)
        case UInt8(ascii: " "): return .sampleNow
        case UInt8(ascii: "a"):
            opened = opened.isEmpty ? Set(devices.map(\.id)) : []
            return .sampleNow
        case UInt8(ascii: "+"): return pace(interval * 2)
        case UInt8(ascii: "-"): return pace(interval / 2)
        default: break
        }
        return .nothing
    }

    private mutating func pace(_ milliseconds: UInt64) -> Reaction {
        interval = min(max(milliseconds, Self.intervals.lowerBound), Self.intervals.upperBound)
        return .sampleNow
    }

    private mutating func turn(_ step: Int) {
        let all = TopColumn.allCases
        let index = all.firstIndex(of: sort) ?? 0
        sort = all[(index + step + all.count) % all.count]
    }

    private mutating func move(_ step: Int) {
        let ids = devices.map(\.id)
        guard !ids.isEmpty else { return }
        guard let index = selected.flatMap({ ids.firstIndex(of: $0) }) else {
            selected = step < 0 ? ids[ids.count - 1] : ids[0]
            return
        }
        selected = ids[min(max(index + step, 0), ids.count - 1)]
    }

    /// Shows the queues of a device, and marks it.
    mutating func open(_ id: UInt32) {
        selected = id
        opened.insert(id)
    }

    private mutating func open() -> Reaction {
        guard let id = selected ?? devices.first?.id else { return .nothing }
        selected = id
        if opened.remove(id) == nil { opened.insert(id) }
        return .sampleNow
    }

    // MARK: Lines

    /// The rows of devices in the order of the column.
    private var devices: [TopRow] {
        let rows = (sample?.rows ?? []).filter { $0.queue == nil }
        let sorted = rows.sorted { left, right in
            let (mine, other) = (sort.key(left), sort.key(right))
            return mine == other ? left.id < right.id : mine > other
        }
        return isReversed ? sorted.reversed() : sorted
    }

    /// The lines of a screen of that size. `time`: of the day.
    mutating func lines(_ screen: Screen, time: String) -> [String] {
        if showsHelp { return Array(Self.help.prefix(screen.rows)) }
        let head = heading(time)
        let foot = [notice, Self.keys]
        page = max(screen.rows - head.count - 1 - foot.count, 1)
        let (table, marked) = self.table(wide: screen.columns)
        first = min(max(first, 0), max(table.count - page, 0))
        if let marked { first = min(max(first, marked - page + 1), marked) }
        var shown = Array(table.dropFirst(first).prefix(page))
        while shown.count < page { shown.append("") }
        // A screen too small for all shows the table.
        let all = head + [Self.header(sort, isReversed)] + shown + foot
        return screen.rows >= all.count ? all : Array(([Self.header(sort, isReversed)] + shown).prefix(screen.rows))
    }

    /// The number of the line that is the table's header.
    var headerLine: Int { showsHelp ? 0 : 2 }

    /// The whole table, for a reader that is no terminal.
    func plain(time: String) -> [String] {
        heading(time) + [Self.header(sort, isReversed)] + table(wide: .max).lines
    }

    private func heading(_ time: String) -> [String] {
        let rows = devices
        var counts: [(DeviceState, Int)] = []
        for state in DeviceState.allCases {
            let count = rows.filter { $0.device?.state == state }.count
            if count > 0 { counts.append((state, count)) }
        }
        let states = counts.map { "\($0.1) \($0.0.rawValue)" }.joined(separator: ", ")
        let devices = rows.count == 1 ? "1 device" : "\(rows.count) devices"
        let pace = isPaused ? "paused" : "every \(Self.seconds(interval))"
        let title = "ubd top  \(time)  \(devices)" + (states.isEmpty ? "" : ": \(states)") + "  (\(pace))"
        return [title, totals(rows)]
    }

    private func totals(_ rows: [TopRow]) -> String {
        guard let sample else { return "counting …" }
        let all = TopRow(id: 0, change: rows.compactMap(\.change).reduce(Counts()) { $0 + $1 })
        func cell(_ column: TopColumn) -> String { column.cell(all, sample) }
        return "all: \(cell(.iops)) IOPS, read \(cell(.read)) MB/s, write \(cell(.write)) MB/s, "
            + "\(cell(.held)) held, \(cell(.errors)) errors/s"
    }

    /// "1 s", "0.5 s".
    private static func seconds(_ milliseconds: UInt64) -> String {
        let (whole, rest) = (milliseconds / 1000, milliseconds % 1000)
        guard rest != 0 else { return "\(whole) s" }
        var decimals = String(String(1000 + rest).dropFirst())
        while decimals.hasSuffix("0") { decimals.removeLast() }
        return "\(whole).\(decimals) s"
    }

    /// The sorted column has a mark: there may be no colours.
    static func header(_ sort: TopColumn, _ isReversed: Bool) -> String {
        let cells = TopColumn.allCases.map { $0 == sort ? (isReversed ? "^" : "v") + $0.header : $0.header }
        return " " + StatsText.line(cells, TopColumn.allCases.map(\.width))
    }

    /// The lines of the table, and which has the mark.
    private func table(wide columns: Int) -> (lines: [String], marked: Int?) {
        guard let sample else { return ([], nil) }
        var lines: [String] = []
        var marked: Int?
        for device in devices {
            if device.id == selected { marked = lines.count }
            let own = sample.rows.filter { $0.id == device.id && $0.queue != nil }
            for row in [device] + own {
                let mark = row.queue == nil && row.id == selected ? ">" : " "
                let cells = TopColumn.allCases.map { $0.cell(row, sample) }
                var line = mark + StatsText.line(cells, TopColumn.allCases.map(\.width))
                // What it serves, where there is room for a word.
                if columns > 95, row.queue == nil, let device = row.device {
                    line += "  " + ListColumn.target.cell(device, owner: nil)
                }
                lines.append(line.printable)
            }
        }
        return (lines.isEmpty ? ["no devices"] : lines, marked)
    }

    /// Trouble with the broker, or what is to say of the marked device.
    private var notice: String {
        if let trouble { return trouble.printable }
        guard let selected, let device = devices.first(where: { $0.id == selected })?.device else { return "" }
        let reason = device.reason ?? device.lastDeath.map { "its worker died: the last \($0)" }
        return "ubdb\(selected): \(reason ?? ListColumn.target.cell(device, owner: nil))".printable
    }

    static let help = [
        "ubd top: what your devices do (as root: everyone's)",
        "",
        "  left, right, <, >   sort by the column before or after",
        "  r                   reverse the order",
        "  up, down, j, k      mark a device; page keys, home and end too",
        "  enter               show the queues of the marked device, or hide them",
        "  a                   show the queues of all, or hide them",
        "  + -                 twice or half the time between two looks",
        "  p, space            pause or go on; look now",
        "  q, Ctrl-C           quit",
        "",
        "  IOPS                requests of any kind that ended, a second",
        "  R MB/S, W MB/S      millions of bytes read and written, a second",
        "  HELD                requests that the worker has at this moment",
        "  P50, P99            half, and 99 of 100, of the measured requests took less",
        "  ERR/S               requests that failed, a second",
        "  WORKER, DIED        the process that serves, and how many have died",
        "",
        "any key goes back",
    ]
}
