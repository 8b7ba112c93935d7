import Glibc
import SystemCalls

/// A terminal that shows one program on all of its screen, and sends each key as it is pressed. Its own screen and its modes come
/// back at the end, also when a signal ends the program or stops it for a while.
struct TopTerminal: ~Copyable {
    /// Where keys come from.
    private let keyboard: FileDescriptor
    private let before: termios
    private let signals: SignalReader
    private var keys = TopKeys()

    enum Event: Equatable {
        case key(TopKey)
        /// The screen's size may have changed.
        case resized
        /// A signal, or the end of the terminal, ends the program.
        case end
    }

    /// Alternate screen and no cursor (xterm's private modes, which every terminal emulator has), and back.
    private static let begin = "\u{1B}[?1049h\u{1B}[?25l\u{1B}[2J"
    private static let finish = "\u{1B}[?25h\u{1B}[?1049l"

    /// - Throws: the system's error when there is no terminal to type on.
    static func take() throws(SystemError) -> TopTerminal {
        let keyboard = FileDescriptor(
            owning: try call("open /dev/tty") { open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY) })
        var modes = termios()
        let raw = keyboard.raw
        try call("tcgetattr") { tcgetattr(raw, &modes) }
        let signals = try SignalReader([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGTSTP])
        return TopTerminal(keyboard: keyboard, before: modes, signals: signals)
    }

    private init(keyboard: consuming FileDescriptor, before: termios, signals: consuming SignalReader) {
        self.keyboard = keyboard
        self.before = before
        self.signals = signals
        enter()
    }

    /// Keys one by one, not echoed, none of them a signal: so Ctrl-C cannot leave the terminal as it is now.
    private func enter() {
        var modes = before
        modes.c_lflag &= ~UInt32(ICANON | ECHO | ISIG | IEXTEN)
        modes.c_iflag &= ~UInt32(ICRNL | IXON)
        tcsetattr(keyboard.raw, TCSADRAIN, &modes)
        _ = writeStandard(Self.begin, to: STDOUT_FILENO)
    }

    private func leave() {
        _ = writeStandard(Self.finish, to: STDOUT_FILENO)
        var modes = before
        tcsetattr(keyboard.raw, TCSADRAIN, &modes)
    }

    deinit { leave() }

    /// Stops this program until somebody continues it, as Ctrl-Z does.
    func suspend() {
        leave()
        raise(SIGSTOP)
        enter()
    }

    /// Waits for events, `milliseconds` at most.
    mutating func events(within milliseconds: UInt64) -> [Event] {
        var files = [
            pollfd(fd: keyboard.raw, events: Int16(POLLIN), revents: 0),
            pollfd(fd: signals.file.raw, events: Int16(POLLIN), revents: 0),
        ]
        let count = poll(&files, 2, Int32(clamping: milliseconds))
        // An escape that nothing follows is the key.
        guard count > 0 else { return keys.flush().map(Event.key) }
        var events: [Event] = []
        if files[1].revents != 0 { events += signalled() }
        if files[0].revents != 0 { events += typed() }
        return events
    }

    private func signalled() -> [Event] {
        var events: [Event] = []
        while let signal = signals.next() {
            switch signal {
            case SIGWINCH: events.append(.resized)
            case SIGTSTP: events.append(.key(.suspend))
            default: events.append(.end)
            }
        }
        return events
    }

    private mutating func typed() -> [Event] {
        var bytes = [UInt8](repeating: 0, count: 256)
        let count = read(keyboard.raw, &bytes, bytes.count)
        if count < 0, errno == EINTR || errno == EAGAIN { return [] }
        guard count > 0 else { return [.end] }
        return keys.take(bytes[..<count]).map(Event.key)
    }
}
