#include "serve/http/page.h"

namespace orrery {

std::string_view page_html() {
  return R"html(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><title>Orrery</title>
<style>
:root{--ink:#1d2430;--soft:#5d6878;--line:#d9dee6;--paper:#fff;--back:#f4f6f9;--accent:#2457a8;--you:#e8eef8}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9f1;--soft:#98a3b3;--line:#333c49;--paper:#1b212a;--back:#12161c;--accent:#7fadf2;--you:#233048}}
*{box-sizing:border-box}body{margin:0;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);height:100vh;display:flex;flex-direction:column}
header{display:flex;gap:1rem;align-items:baseline;padding:.6rem 1.2rem;border-bottom:1px solid var(--line);background:var(--paper)}
h1{font-size:1.05rem;margin:0}#model{color:var(--soft)}main{flex:1;display:flex;min-height:0}
#chat{flex:1;display:flex;flex-direction:column;min-width:0}#log{flex:1;overflow-y:auto;padding:1.2rem}
.m{max-width:46rem;margin:0 auto .8rem;padding:.6rem .9rem;border-radius:.6rem;white-space:pre-wrap;overflow-wrap:anywhere;background:var(--paper);border:1px solid var(--line)}
.m.user{background:var(--you)}.m.error{border-color:#c33}form{display:flex;gap:.5rem;padding:.8rem 1.2rem;border-top:1px solid var(--line);background:var(--paper)}
textarea{flex:1;resize:none;height:3.2rem;font:inherit;padding:.4rem .6rem;border:1px solid var(--line);border-radius:.4rem;background:var(--back);color:var(--ink)}
button{font:inherit;padding:0 1.1rem;border:0;border-radius:.4rem;background:var(--accent);color:var(--paper);cursor:pointer}button:disabled{opacity:.5}
aside{width:17rem;border-left:1px solid var(--line);background:var(--paper);padding:1rem;overflow-y:auto}
dl{display:grid;grid-template-columns:1fr auto;gap:.15rem .5rem;margin:0 0 1rem}dt{color:var(--soft)}dd{margin:0;font-variant-numeric:tabular-nums}
.bar{height:.5rem;background:var(--back);border-radius:.25rem;overflow:hidden;margin-bottom:1rem}.bar i{display:block;height:100%;width:0;background:var(--accent)}
label{display:block;color:var(--soft);font-size:.85rem;margin-top:.5rem}input{width:100%;font:inherit;padding:.2rem .4rem;border:1px solid var(--line);border-radius:.3rem;background:var(--back);color:var(--ink)}
svg{width:100%;height:3rem;margin-bottom:.8rem}polyline{fill:none;stroke:var(--accent);stroke-width:1.5}@media(max-width:700px){main{flex-direction:column}aside{width:auto;max-height:30vh;border-left:0;border-top:1px solid var(--line)}}
</style></head><body>
<header><h1>Orrery</h1><span id="model"></span><span id="state"></span></header>
<main><section id="chat"><div id="log" aria-live="polite"></div>
<form id="form"><textarea id="text" placeholder="Say something. Enter sends, Shift+Enter makes a line." autofocus></textarea><button id="send">Send</button></form></section>
<aside><dl><dt>running</dt><dd id="running">-</dd><dt>waiting</dt><dd id="waiting">-</dd><dt>tokens/s</dt><dd id="rate">-</dd><dt>answers</dt><dd id="answers">-</dd>
<dt>prefix hits</dt><dd id="hits">-</dd><dt>preemptions</dt><dd id="preemptions">-</dd><dt>first token</dt><dd id="ttft">-</dd><dt>memory</dt><dd id="memory">-</dd></dl>
<div>tokens/s</div><svg viewBox="0 0 120 40" preserveAspectRatio="none"><polyline id="line" points=""/></svg>
<div>key-value cache <span id="kv"></span></div><div class="bar"><i id="kvbar"></i></div>
<label>temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0.7"></label>
<label>most tokens <input id="most" type="number" min="1" value="512"></label><label>seed <input id="seed" type="number" placeholder="random"></label>
<label>API key <input id="key" type="password" placeholder="none"></label></aside></main>
<script>
const $=i=>document.getElementById(i),messages=[];let abort=null;
const auth=()=>$('key').value?{Authorization:'Bearer '+$('key').value}:{};
function bubble(role,text){const d=document.createElement('div');d.className='m '+role;d.textContent=text;$('log').append(d);$('log').scrollTop=1e9;return d}
async function send(){
  const text=$('text').value.trim();if(!text)return;$('text').value='';messages.push({role:'user',content:text});bubble('user',text);
  const out=bubble('assistant','');let answer='';abort=new AbortController();$('send').textContent='Stop';
  try{
    const body={messages,stream:true};
    for(const[name,id]of[['temperature','temperature'],['max_tokens','most'],['seed','seed']])if($(id).value)body[name]=+$(id).value;
    const r=await fetch('/v1/chat/completions',{method:'POST',signal:abort.signal,headers:{'Content-Type':'application/json',...auth()},body:JSON.stringify(body)});
    if(!r.ok)throw new Error((await r.json()).error.message);
    const reader=r.body.pipeThrough(new TextDecoderStream()).getReader();let rest='';
    for(;;){const{value,done}=await reader.read();if(done)break;rest+=value;let end;
      while((end=rest.indexOf('\n\n'))>=0){const data=rest.slice(6,end);rest=rest.slice(end+2);if(data==='[DONE]')continue;
        const e=JSON.parse(data);if(e.error)throw new Error(e.error.message);const d=e.choices[0]&&e.choices[0].delta.content;if(d){answer+=d;out.textContent=answer;$('log').scrollTop=1e9}}}
  }catch(e){if(e.name!=='AbortError'){out.classList.add('error');out.textContent=(answer&&answer+'\n')+e.message}}
  // What was not answered is not said again with every later message.
  if(answer)messages.push({role:'assistant',content:answer});else messages.pop();
  abort=null;$('send').textContent='Send';$('text').focus()
}
$('form').onsubmit=e=>{e.preventDefault();abort?abort.abort():send()};
$('text').onkeydown=e=>{if(e.key==='Enter'&&!e.shiftKey){e.preventDefault();if(!abort)send()}};
let last=null;const rates=[];
async function poll(){
  try{
    const r=await fetch('/metrics',{headers:auth()});if(!r.ok)throw 0;const m={};
    for(const l of(await r.text()).split('\n')){if(!l||l[0]==='#'||l.includes('_bucket'))continue;const k=l.split('{')[0].split(' ')[0];m[k]=(m[k]||0)+ +l.slice(l.lastIndexOf(' ')+1)}
    const v=k=>m['vllm:'+k]||0,now=performance.now()/1000;
    $('running').textContent=v('num_requests_running');$('waiting').textContent=v('num_requests_waiting');$('answers').textContent=v('request_success_total');
    $('preemptions').textContent=v('num_preemptions_total');$('hits').textContent=Math.round(100*v('prefix_cache_hits_total')/Math.max(1,v('prefix_cache_queries_total')))+' %';
    const n=v('time_to_first_token_seconds_count');$('ttft').textContent=n?Math.round(1000*v('time_to_first_token_seconds_sum')/n)+' ms':'-';
    $('memory').textContent=(m.process_resident_memory_bytes/2**20).toFixed(0)+' MiB';
    const kv=100*v('kv_cache_usage_perc');$('kv').textContent=kv.toFixed(1)+' %';$('kvbar').style.width=kv+'%';
    const t=m.orrery_engine_step_tokens_total;if(last){const rate=Math.max(0,(t-last[0])/(now-last[1]));$('rate').textContent=rate.toFixed(0);rates.push(rate);if(rates.length>60)rates.shift();
      const top=Math.max(1,...rates);$('line').setAttribute('points',rates.map((x,i)=>i*2+','+(39-38*x/top)).join(' '))}
    last=[t,now];$('state').textContent='';if(!$('model').textContent)name();
  }catch(e){$('state').textContent='no metrics (key?)'}
  setTimeout(poll,1000)
}
function name(){fetch('/v1/models',{headers:auth()}).then(r=>r.json()).then(j=>$('model').textContent=j.data[0].id).catch(()=>0)}
poll();
</script></body></html>
)html";
}

}  // namespace orrery
