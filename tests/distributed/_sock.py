import gc, os, time
import trials
from megaselect.distributed.launch import joined_ranks
def socks():
    n=0
    for f in os.listdir('/proc/self/fd'):
        try: n+= os.readlink('/proc/self/fd/'+f).startswith('socket:')
        except OSError: pass
    return n
def go(kind):
    out=[socks()]
    def inner():
        with joined_ranks(60) as ranks:
            out.append(socks())
            if kind>=1:
                t=trials.Trial(trials.make_config(parallel={"sharding":"parameters" if kind!=3 else "none"}),ranks)
                out.append(socks())
                if kind>=2: t.train(1)
                out.append(socks())
    inner()
    out.append(socks()); gc.collect(); out.append(socks()); time.sleep(1); out.append(socks())
    return out
