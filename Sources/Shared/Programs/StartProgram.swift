import CShims
import Glibc
import SystemCalls

/// Starts another program. It gets no file but `files`, the first as its file 0, the next as 1 and so on; no signal is
/// ignored or blocked there.
///
/// - Parameters:
///   - path: the program; it is not searched for.
///   - words: its name and its arguments, each with a NUL at its end.
///   - inheritsEnvironment: it gets this process's environment, else an empty one.
///   - ownSession: it gets a session of its own: what is typed at this process's terminal is not for it.
/// - Returns: the pid of the child.
/// - Throws: why it cannot be started: ENOENT and EACCES too.
public func startProgram(
    _ path: String, _ words: [[CChar]], files: [Int32], inheritsEnvironment: Bool, ownSession: Bool = false
) throws(SystemError) -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    var copies: [Int32] = []
    defer { for copy in copies { close(copy) } }
    for (number, file) in files.enumerated() {
        var source = file
        if file < number {
            // By then its number is that of an earlier one.
            source = try call("duplicate a file") { fcntl(file, F_DUPFD_CLOEXEC, Int32(files.count)) }
            copies.append(source)
        }
        posix_spawn_file_actions_adddup2(&actions, source, Int32(number))
    }
    posix_spawn_file_actions_addclosefrom_np(&actions, Int32(files.count))
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var signals = sigset_t()
    sigfillset(&signals)
    posix_spawnattr_setsigdefault(&attributes, &signals)
    sigemptyset(&signals)
    posix_spawnattr_setsigmask(&attributes, &signals)
    let flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | (ownSession ? POSIX_SPAWN_SETSID : 0)
    posix_spawnattr_setflags(&attributes, Int16(flags))
    return try withWords(words) { (words) throws(SystemError) in
        var nothing: UnsafeMutablePointer<CChar>?
        var pid: pid_t = 0
        let result = withUnsafeMutablePointer(to: &nothing) { empty in
            posix_spawn(&pid, path, &actions, &attributes, words, inheritsEnvironment ? ubd_environment() : empty)
        }
        guard result == 0 else { throw SystemError("start \(path)", result) }
        return pid
    }
}

/// Words for exec: an array of C strings that ends with a null.
public func withWords<Result>(
    _ words: [[CChar]],
    _ body: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) throws(SystemError) -> Result
) throws(SystemError) -> Result {
    let array = UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>.allocate(capacity: words.count + 1)
    for (index, word) in words.enumerated() { array[index] = strdup(word) }
    array[words.count] = nil
    defer {
        for index in words.indices { free(array[index]) }
        array.deallocate()
    }
    return try body(array)
}
